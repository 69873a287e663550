"""From a table of prices and what is trained to a `Budget`.

`static/savings_price.js` does the same for LoRA in the browser, to the byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.budget.costs import Budget, Memory
from lora_lab.budget.optimizers import StateRule, master_rule, state_rule
from lora_lab.errors import ConfigError
from lora_lab.methods.cost import NOTHING, MethodCost
from lora_lab.methods.lora.cost import rank_cost


def evaluate_price(price: Mapping[str, Any], ranks: Mapping[str, int]) -> Budget:
    """Price LoRA of {site name: rank}; a rank of 0 leaves the site out.

    Raises:
        ConfigError: for a site that the table does not have.
    """
    if unknown := ranks.keys() - price["sites"].keys():
        raise ConfigError(f"no matrix is called {min(unknown)!r}; see anatomy(model).sites")
    cost = rank_cost(price, {name: r for name, r in ranks.items() if r > 0})
    if cost.shapes and (whole := price.get("whole")):  # a head, outside the blocks
        cost.train(len(price["rows"]) - 1, *map(tuple, whole))
    return assemble(price, [cost])


def assemble(price: Mapping[str, Any], costs: Sequence[MethodCost], method: str = "LoRA") -> Budget:
    """Price several methods in one model: what they share, such as a live input, is paid once."""
    rows, groups = price["rows"], price["groups"]
    first = min((cost.first for cost in costs), default=NOTHING)
    kept = [sum(size for order, size in row["pieces"] if order > first) for row in rows]
    freed = [0] * len(rows)
    gradients = [0] * len(rows)
    for key in set().union(*(cost.live_inputs for cost in costs)):
        group = groups[key]
        if is_made_again(group, first):
            continue
        kept[group["row"]] += group["bytes"]
        freed[group["row"]] += group["bytes"] if group["spent"] else 0
    weights = price["weights"]
    optimizer = scratch = growth = gathering = 0
    rule = state_rule(price["optimizer"]["name"])
    temporaries = [0] * len(rows)
    for cost in costs:
        for row, size in cost.kept.items():
            kept[row] += size
        for row, size in cost.freed.items():
            freed[row] += size
        for row, size in cost.temporaries.items():
            temporaries[row] = max(temporaries[row], size)
        for row, size in cost.gradients.items():
            gradients[row] += size
        masters = master_rule(cost.shapes, cost.elements)
        gathering = max(gathering, growth + masters.gathering)
        growth += masters.growth
        optimizer += sum(map(rule.size, cost.shapes)) + masters.state + cost.state
        scratch = max(scratch, largest_scratch(rule, cost.shapes))
        weights += cost.weights
    trainable = sum(cost.parameters for cost in costs)
    forward = max((cost.forward for cost in costs), default=0)
    scratch = max(gathering, growth + scratch)
    peak = (
        step_peak(
            price, kept, freed, gradients, temporaries=temporaries, forward=forward, scratch=scratch
        )
        if trainable
        else 0
    )
    given = sum(gradients) + growth  # to the optimizer
    return Budget(
        parameters_total=price["parameters"],
        parameters_trainable=trainable,
        checkpoint_bytes=sum(cost.checkpoint for cost in costs),
        full_checkpoint_bytes=price["weights"],
        full=Memory(**price["full"]),
        adapted=Memory(
            weights=weights,
            gradients=given,
            optimizer=optimizer,
            activations=peak - given,
        ),
        approximate=price["approximate"] or any(cost.estimated for cost in costs),
        settings=price["settings"],
        method=method,
        notes=(*price.get("notes", ()), *(note for cost in costs for note in cost.notes)),
    )


def is_made_again(group: Mapping[str, Any], first: float) -> bool:
    """Whether an input is not kept, where the first thing that is trained has this order."""
    return group.get("unless") is not None and first < group["unless"]


def largest_scratch(rule: StateRule, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the temporaries of a step whose tensors are small beside the rest, in any order."""
    largest = max(map(math.prod, shapes), default=0)
    return rule.scratch([largest, largest])


def step_peak(
    price: Mapping[str, Any],
    kept: list[int],
    freed: list[int],
    gradients: list[int],
    *,
    temporaries: Sequence[int] | None = None,
    forward: int = 0,
    head: int = 0,
    head_gradient: int = 0,
    scratch: int = 0,
) -> int:
    """Return the most bytes of activations and gradients that live at once.

    The candidates: the loss, when all is kept; each block's backward pass, when what lies behind it
    is freed and its gradients have come; the end, when only gradients are left and the optimizer
    is at work.
    """
    # What lies outside the blocks, the last row, is not computed again.
    again = [k if price["gradient_checkpointing"] else 0 for k in kept[:-1]] + [0]
    stored = [
        min(k, row["input"]) if twice else k
        for k, twice, row in zip(kept, again, price["rows"], strict=True)
    ]
    alive = sum(stored)
    peak = alive + max(price["head"] + head + price["loss"], forward)
    alive += head_gradient
    for number in reversed(range(len(kept))):
        if kept[number]:
            here = price["rows"][number]["work"] - freed[number]
            at_once = temporaries[number] if temporaries else 0
            peak = max(peak, alive + again[number] + max(here, at_once))
        alive += gradients[number] - stored[number]
    return max(peak, alive + scratch)
