"""From a table of prices and what is trained to a `Budget`.

`static/savings_price.js` does the same for LoRA in the browser, to the byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lora_lab.budget.costs import Budget, Memory
from lora_lab.budget.optimizers import StateRule, state_rule
from lora_lab.errors import ConfigError
from lora_lab.methods.cost import NOTHING, Part, lora_part


def evaluate_price(price: Mapping[str, Any], ranks: Mapping[str, int]) -> Budget:
    """Price LoRA of {site name: rank}; a rank of 0 leaves the site out.

    Raises:
        ConfigError: for a site that the table does not have.
    """
    if unknown := ranks.keys() - price["sites"].keys():
        raise ConfigError(f"no site is called {min(unknown)!r}; see anatomy(model).sites")
    return assemble(price, [lora_part(price, {name: r for name, r in ranks.items() if r > 0})])


def assemble(price: Mapping[str, Any], parts: Sequence[Part], method: str = "LoRA") -> Budget:
    """Price several parts in one model: what they share, such as a live input, is paid once."""
    rows, groups = price["rows"], price["groups"]
    first = min((part.first for part in parts), default=NOTHING)
    kept = [sum(size for order, size in row["pieces"] if order > first) for row in rows]
    spent = [0] * len(rows)
    gradients = [0] * len(rows)
    for key in set().union(*(part.groups for part in parts)):
        group = groups[key]
        kept[group["row"]] += group["bytes"]
        spent[group["row"]] += group["bytes"] if group["spent"] else 0
    weights = price["weights"]
    optimizer = scratch = 0
    work = [0] * len(rows)
    for part in parts:
        for row, size in part.kept.items():
            kept[row] += size
        for row, size in part.spent.items():
            spent[row] += size
        for row, size in part.work.items():
            work[row] = max(work[row], size)
        for row, size in part.gradients.items():
            gradients[row] += size
        rule = state_rule(price["optimizer"]["name"], part.element)
        optimizer += sum(map(rule.size, part.shapes)) + part.state
        scratch = max(scratch, largest_scratch(rule, part.shapes))
        weights += part.weights
    trainable = sum(part.parameters for part in parts)
    forward = max((part.forward for part in parts), default=0)
    peak = (
        step_peak(price, kept, spent, gradients, work=work, forward=forward, scratch=scratch)
        if trainable
        else 0
    )
    return Budget(
        parameters_total=price["parameters"],
        parameters_trainable=trainable,
        checkpoint_bytes=sum(part.checkpoint for part in parts),
        full_checkpoint_bytes=price["weights"],
        full=Memory(**price["full"]),
        adapted=Memory(
            weights=weights,
            gradients=sum(gradients),
            optimizer=optimizer,
            activations=peak - sum(gradients),
        ),
        approximate=price["approximate"] or any(part.estimated for part in parts),
        settings=price["settings"],
        method=method,
        notes=tuple(note for part in parts for note in part.notes),
    )


def largest_scratch(rule: StateRule, shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the temporaries of a step whose tensors are small beside the rest, in any order."""
    largest = max(map(math.prod, shapes), default=0)
    return rule.scratch([largest, largest])


def step_peak(
    price: Mapping[str, Any],
    kept: list[int],
    spent: list[int],
    gradients: list[int],
    *,
    work: Sequence[int] | None = None,
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
            here = price["rows"][number]["work"] - spent[number]
            peak = max(peak, alive + again[number] + max(here, work[number] if work else 0))
        alive += gradients[number] - stored[number]
    return max(peak, alive + scratch)
