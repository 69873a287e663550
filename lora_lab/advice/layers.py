"""*Which layers?*: ranks for a budget of parameters, by gradient norms, beside the uniform plan.

Each matrix gets a share of the parameters in proportion to its gradient norm. That is a heuristic,
and says so: what was published of ranks that differ is close to uniform ones.
"""

from __future__ import annotations

import heapq
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_lab._util.format import format_count, format_number
from lora_lab._util.tables import Table
from lora_lab.advice.gradients import LayerGradients, layer_gradients
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.errors import ConfigError
from lora_lab.methods.config import need_count
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import config_from_ranks, resolve_targets
from lora_lab.models.given import as_loaded
from lora_lab.tasks.load import as_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab.tasks.load import Data

UNIFORM_RANK = 8  # whose parameters are the budget where nobody says one
FINDING = (
    "heuristic: no published result says that gradient norms before training find the ranks that "
    "learn most. AdaLoRA, which moves ranks while it trains, has 88.86 on GLUE with 0.32M "
    "parameters where uniform LoRA has 88.15 with 0.33M (Zhang et al., 2023, table 1), and in "
    "PEFT's comparison on MetaMathQA 37.30 % at r = 32 where uniform LoRA has 47.84. Train both"
)


@dataclass(frozen=True)
class RankPlan:
    """Ranks, and what they come to.

    Attributes:
        ranks: {site: rank}; a site that is not named is frozen.
        parameters: trainable, Σ r(in + out).
        config: that gives these ranks, with α = 2r everywhere, so that ΔW's scale is the same.
    """

    ranks: Mapping[str, int]
    parameters: int
    config: LoraConfig


@dataclass(frozen=True, repr=False)
class WhichLayers:
    """What a probe says of ranks; printed, or as the last line of a cell, it shows itself.

    Attributes:
        gradients: the norms.
        proposed: ranks by them.
        uniform: one rank for all, as even as the budget allows.
        budget: trainable parameters that neither exceeds.
        anatomy: of the model.
    """

    gradients: LayerGradients
    proposed: RankPlan
    uniform: RankPlan
    budget: int
    anatomy: Anatomy

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""

        def plan(own: RankPlan) -> dict[str, Any]:
            return {"parameters": own.parameters, "ranks": dict(own.ranks)}

        return {
            "budget": self.budget,
            "norms": self.gradients.norms,
            "spread": self.gradients.spread,
            "losses": list(self.gradients.losses),
            "left_out": dict(self.gradients.left_out),
            "seconds": round(self.gradients.seconds, 3),
            "proposed": plan(self.proposed),
            "uniform": plan(self.uniform),
            "finding": FINDING,
        }

    def table(self) -> Table:
        """Return a line for each role: its norm, the mean over the layers, and the ranks."""
        norms, roles = self.gradients.norms, dict.fromkeys(s.role for s in self.anatomy.sites)

        def row(role: str) -> tuple[str, ...]:
            own = [s.name for s in self.anatomy.sites if s.role == role and s.name in norms]
            mean = format_number(sum(norms[name] for name in own) / len(own)) if own else "–"
            return role, mean, _ranks(self.proposed, own), _ranks(self.uniform, own)

        measured = {s.role for s in self.anatomy.sites if s.name in norms}
        header = "role", "gradient norm", "proposed r", "uniform r"
        rows = tuple(row(role) for role in roles if role in measured)
        return Table(header, rows, frozenset(header[1:]))

    def __str__(self) -> str:
        return "\n".join([self._headline(), "", str(self.table()), "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<div>{html.escape(note)}</div>" for note in self.notes())
        title = f"<b>{html.escape(self._headline())}</b>"
        return f"<div>{title}{self.table()._repr_html_()}{notes}</div>"

    def _headline(self) -> str:
        count = len(self.gradients.losses)
        passes = "backward pass" if count == 1 else "backward passes"
        return (
            f"{count} {passes} in {self.gradients.seconds:.1f} s; proposed "
            f"{format_count(self.proposed.parameters)} parameters, uniform "
            f"{format_count(self.uniform.parameters)}, of at most {format_count(self.budget)}"
        )

    def notes(self) -> list[str]:
        """Return what people should know besides, a line each."""
        out = self.gradients.left_out
        found = [FINDING]
        if out:
            name, why = next(iter(out.items()))
            found.append(f"not measured: {len(out)} of the matrices ({name}: {why})")
        return found


def which_layers(
    lm: LoadedModel | PreTrainedModel | str,
    task: Task | Data,
    *,
    parameters: int | None = None,
    target_modules: Sequence[str] | str = "all-linear",
    passes: int = 4,
    batch_size: int = 2,
    max_length: int = 128,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    done: Callable[[int], None] = lambda _count: None,
) -> WhichLayers:
    """Probe a model with a few backward passes, and propose ranks for a budget of parameters.

    Nothing of the model changes: gradients, modes, what learns, torch's random numbers.

    >>> found = which_layers(lm, "mini-e2e", parameters=500_000)
    >>> ll.train(lm, "mini-e2e", found.proposed.config)   # and found.uniform.config beside it

    Args:
        lm: what `load_model` returns or takes, or a transformers model, then with its tokenizer.
        task: a task, or what `load_task` takes.
        parameters: trainable ones at most; None: as many as r = 8 everywhere has.
        target_modules: the matrices among which ranks are given, as `LoraConfig` has them.
        passes, batch_size, max_length, seed, done: as `layer_gradients` has them.
        tokenizer: of a model of your own.

    Raises:
        ConfigError: fewer parameters than r = 1 everywhere takes; a target that matches nothing.
        TaskError, ModelError, AdapterError: as `layer_gradients`.
    """
    task = as_task(task)
    call = "ll.which_layers(model, …, tokenizer=tokenizer)"
    lm = as_loaded(lm, tokenizer, task.head, call)
    grid = anatomy(lm.model)
    targets = LoraConfig(r=1, target_modules=target_modules)
    sites = [spec.site for spec in resolve_targets(grid, targets)]
    budget = _budget(sites, parameters)
    gradients = layer_gradients(
        lm,
        task,
        passes=passes,
        batch_size=batch_size,
        max_length=max_length,
        seed=seed,
        done=done,
    )
    norms = gradients.norms
    measured = [site for site in sites if site.name in norms]
    if not measured:
        raise ConfigError(
            f"none of the {len(sites)} targets was measured ({sites[0].name}: "
            f"{gradients.left_out.get(sites[0].name, 'it is no weight matrix of the grid')}); name "
            "others in target_modules"
        )
    proposed = allocate(measured, norms, budget)
    return WhichLayers(
        gradients, _plan(grid, proposed), _plan(grid, uniform(sites, budget)), budget, grid
    )


def cost(site: Site) -> int:
    """Return the parameters of one rank: A's row and B's column, of each expert."""
    return site.experts * (site.in_features + site.out_features)


def uniform(sites: Sequence[Site], budget: int) -> dict[str, int]:
    """Return the same rank for all sites, and one more for the first ones that there is room for.

    A site too thin for it gets min(out, in).
    """
    return allocate(sites, {site.name: float(cost(site)) for site in sites}, budget)


def allocate(sites: Sequence[Site], weights: Mapping[str, float], budget: int) -> dict[str, int]:
    """Return {site: rank}: each site's parameters are in proportion to its weight.

    One rank after the other goes where weight / parameters-with-it is largest (D'Hondt's rule for
    seats of different prices), until none fits any more. Sites without a rank are left out.

    Args:
        sites: in the order that decides between equal ones.
        weights: {site: above 0}.
        budget: trainable parameters at most.
    """
    ranks = dict.fromkeys((site.name for site in sites), 0)
    waiting = [(-weights[s.name] / cost(s), number) for number, s in enumerate(sites)]
    heapq.heapify(waiting)
    while waiting:
        _, number = heapq.heappop(waiting)
        site = sites[number]
        r = ranks[site.name]
        if cost(site) > budget or r == min(site.in_features, site.out_features):
            continue
        budget -= cost(site)
        ranks[site.name] = r + 1
        heapq.heappush(waiting, (-weights[site.name] / ((r + 2) * cost(site)), number))
    return {name: r for name, r in ranks.items() if r}


def _budget(sites: Sequence[Site], parameters: int | None) -> int:
    least = sum(map(cost, sites))
    if parameters is None:
        thin = (min(UNIFORM_RANK, site.in_features, site.out_features) for site in sites)
        return sum(cost(site) * r for site, r in zip(sites, thin, strict=True))
    need_count("parameters", parameters, least=1)
    if parameters < least:
        raise ConfigError(
            f"parameters={parameters:,} is less than r = 1 at all {len(sites)} targets takes, "
            f"{least:,}; use at least that, or fewer target_modules"
        )
    return parameters


def _plan(grid: Anatomy, ranks: Mapping[str, int]) -> RankPlan:
    made = config_from_ranks(grid, ranks, LoraConfig())
    patterns = {key: 2.0 * r for key, r in made.rank_pattern.items()}
    config = made.replace(lora_alpha=2.0 * made.r, alpha_pattern=patterns)
    return RankPlan(ranks, sum(r * cost(grid.by_name[n]) for n, r in ranks.items()), config)


def _ranks(plan: RankPlan, names: Sequence[str]) -> str:
    """Return "4", or "0–12" where they differ."""
    own = [plan.ranks.get(name, 0) for name in names]
    low, high = min(own, default=0), max(own, default=0)
    return str(low) if low == high else f"{low}–{high}"
