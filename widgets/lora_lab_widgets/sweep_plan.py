"""The sweep that the workbench would train: texts such as "4, 8, 16" to cells, and no run yet."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lora_lab.anatomy.types import Anatomy
from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.lora.targets import common_rank
from lora_lab.methods.plain import method_to_dict
from lora_lab.methods.registry import method_of
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cells import Cell, UnusedFieldError, Varied, cell_of, expand
from lora_lab.sweeps.design import RATES, SEEDS, Design
from lora_lab.sweeps.layers import ALL, in_layers, read_layers
from lora_lab.sweeps.store import checked_name
from lora_lab_widgets.plan import PlanModel

AXES = {
    "method": "methods",
    "target_modules": "targets",
    "layers": "layers",
    "r": "ranks",
    "learning_rate": "learning rates",
    "seed": "seeds",
}
"""{field: how the panel calls it}."""
MOST_CELLS = 120
OF_TRAINING = "learning_rate", "seed"


@dataclass(frozen=True)
class SweepTexts:
    """What a person typed, each value one that can be.

    Attributes:
        axes: {field: values}, of those that are filled in.
        stop_at: the first step at which what is behind is ended; None: never.
        name: of the sweep's folder.
        compare: whether each method gets its own best rate, on one half of the held-out examples.
    """

    axes: Mapping[str, Sequence[Any]]
    stop_at: int | None
    name: str
    compare: bool = False

    @property
    def asha(self) -> AshaConfig | None:
        """The rule of early stopping."""
        return None if self.stop_at is None else AshaConfig(grace_steps=self.stop_at)


class FieldError(ConfigError):
    """A text that cannot be; `field` says whose."""

    def __init__(self, field: str, line: str) -> None:
        self.field = field
        super().__init__(line)


def read_texts(texts: Mapping[str, str], anatomy: Anatomy, methods: Sequence[str]) -> SweepTexts:
    """Read what was typed.

    Args:
        texts: {field of `AXES`, or "stop_at", "name" or "compare": text}; values are parted by
            commas, and "yes" compares.
        anatomy: of the model: its roles and layers.
        methods: the names that there are.

    Raises:
        FieldError: a text that cannot be.
    """
    axes = {}
    for field, label in AXES.items():
        words = [word for part in texts.get(field, "").split(",") if (word := part.strip())]
        values = [_value(field, label, word, anatomy, methods) for word in words]
        if values:
            axes[field] = list(dict.fromkeys(values))
    stop = texts.get("stop_at", "").strip()
    stop_at = None if not stop else _whole("stop_at", "stop early", stop, 1)
    name = texts.get("name", "").strip() or "sweep"
    try:
        checked_name(name)
    except ConfigError as error:
        raise FieldError("name", str(error)) from None
    compare = texts.get("compare") == "yes"
    if compare and stop_at is not None:
        line = "stop early: a comparison trains every cell to its end; leave it empty"
        raise FieldError("stop_at", line)
    return SweepTexts(axes, stop_at, name, compare)


def cells_of(texts: SweepTexts, plan: PlanModel) -> tuple[Cell, ...]:
    """Return every combination as a cell, each once.

    An axis changes the methods that have it and leaves the others as they are: a rank means nothing
    to BitFit, which is then trained once. Methods that are varied, and learning rates not, train
    each at its own rate.

    Args:
        texts: what is varied.
        plan: the base that is varied.

    Raises:
        ConfigError: nothing is varied, too many cells, or one that cannot be.
    """
    axes = texts.axes
    if not axes:
        raise ConfigError("fill in what to try, such as ranks 4, 8, 16")
    count = math.prod(map(len, axes.values()))
    if count > MOST_CELLS:
        raise ConfigError(
            f"{count:,} combinations; the panel takes {MOST_CELLS} at most, ll.sweep any number"
        )
    try:
        training = TrainingConfig.from_dict(plan.training())
        training = training.for_examples(len(plan.task.train))
    except TypeError as error:
        raise ConfigError(f"the settings of the run cannot be: {error}") from None
    every = itertools.product(*axes.values())
    combinations = [dict(zip(axes, values, strict=True)) for values in every]
    try:
        found = expand(combinations, training, lambda changes: _varied(plan, changes))
    except UnusedFieldError as error:
        field = error.field
        name = plan.entry(plan.settings).name if "method" not in axes else "none of the methods"
        says = "has" if "method" in axes else "has no"
        raise FieldError(
            field, f"{AXES[field]}: {name} {says} {AXES[field]}; leave it empty"
        ) from None
    return tuple(_at_own_rate(plan, cell) for cell in found) if own_rates(axes) else found


def check_stop(texts: SweepTexts, cells: Sequence[Cell]) -> None:
    """Refuse an early stop that no cell comes to before its end.

    Raises:
        FieldError: which steps would do.
    """
    longest = max(cell.training.max_steps for cell in cells)
    if texts.stop_at is not None and texts.stop_at >= longest:
        line = f"stop early: step {texts.stop_at} is not before a cell's end ({longest} steps)"
        raise FieldError("stop_at", f"{line}; use an earlier one, or leave it empty")


def example_layers(anatomy: Anatomy) -> str:
    """Return the two halves of a model's layers, as the field takes them: "0-14, 15-29"."""
    last = max((site.layer for site in anatomy.sites if site.layer is not None), default=0)
    if not last:
        return "0"
    half = (last + 1) // 2
    ends = (0, half - 1), (half, last)
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def own_rates(axes: Collection[str]) -> bool:
    """Whether each method trains at its own learning rate: of these fields that are varied."""
    return "method" in axes and "learning_rate" not in axes


def _at_own_rate(plan: PlanModel, cell: Cell) -> Cell:
    name = cell.changes["method"]
    if name == plan.settings["method"]:
        return cell  # its rate is on show
    training = cell.training.replace(learning_rate=plan.rate_of(name))
    return cell_of(cell.configs, training, cell.changes)


def design_of(texts: SweepTexts, plan: PlanModel) -> Design:
    """Return the comparison that the texts make of the plan; rates and seeds may be left out.

    Raises:
        ConfigError: too many cells, or one that cannot be.
    """
    axes = {field: values for field, values in texts.axes.items() if field not in OF_TRAINING}
    found = cells_of(replace(texts, axes=axes or {"seed": (0,)}), plan)
    methods = list({repr(cell.configs): cell.configs for cell in found}.values())
    training = found[0].training.to_dict()
    return Design.of(
        methods,
        rates=texts.axes.get("learning_rate", RATES),
        seeds=texts.axes.get("seed", SEEDS),
        training={name: own for name, own in training.items() if name not in OF_TRAINING},
    )


def compared_cells(texts: SweepTexts, plan: PlanModel) -> tuple[Cell, ...]:
    """Return the cells of a comparison, on the half of the held-out data that chooses rates.

    Raises:
        ConfigError: as `cells_of`.
        TaskError: there is too little held-out data for two halves.
    """
    design = design_of(texts, plan).at_width(plan.anatomy.shape.hidden_size)
    tasks, _ = design.tasks(plan.task)
    (choose,) = tasks.values()
    cells = tuple(design.cells(choose, None))
    if len(cells) > MOST_CELLS:
        raise ConfigError(
            f"{len(cells):,} cells; the panel takes {MOST_CELLS} at most, ll.compare any number"
        )
    return cells


def _varied(plan: PlanModel, changes: Mapping[str, Any]) -> Varied:
    """Return what changes make of the settings and the ranks on show."""
    settings, ranks, anatomy = dict(plan.settings), plan.ranks, plan.anatomy
    settings["method"] = changes.get("method", settings["method"])
    entry = plan.entry(settings)
    has = {"method"}
    if entry.paints:
        has |= {"r", "target_modules", "layers"}
        ranks = _painted(ranks, changes, anatomy)
    elif "r" in changes:
        for method in entry.methods:
            if method.rank:
                has.add("r")
                settings[method.rank] = changes["r"]
    config = plan.config_of(settings, ranks)
    if entry.paints and "layers" in changes:
        config = _kept(config, changes["layers"], anatomy)
    return Varied(config, has)


def as_grid(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Return the cells as the grid of a sweep file: the same cells, under the same ids.

    Raises:
        ConfigError: they are no grid.
    """
    configs = list({repr(cell.configs): cell.configs for cell in cells}.values())
    grid: dict[str, list[Any]] = {}
    if len(configs) > 1:
        ranks = [_only_rank(own, configs[0]) for own in configs]
        if all(ranks):
            grid["r"] = ranks
        else:
            grid["configs"] = [[method_to_dict(config) for config in own] for own in configs]
    for field in OF_TRAINING:
        values = list(dict.fromkeys(getattr(cell.training, field) for cell in cells))
        if len(values) > 1:
            grid[field] = values
    if math.prod(map(len, grid.values())) > len(cells):
        raise ConfigError(
            "each method trains at its own learning rate here, which no grid of a file can say; "
            "fill in learning rates, which all of them try"
        )
    # A sweep of one cell varies nothing, and is a sweep all the same.
    return grid or {"seed": [cells[0].training.seed]}


def _only_rank(own: tuple[MethodConfig, ...], first: tuple[MethodConfig, ...]) -> int | None:
    """Return the rank, where it is all that a method's config has of its own."""
    (config, *more), base = own, first[0]
    rank = method_of(config).rank
    if more or len(first) > 1 or not rank or type(config) is not type(base):
        return None
    found: int = getattr(config, rank)
    alike = {**config.to_dict(), rank: getattr(base, rank)} == base.to_dict()
    return found if alike else None


def _painted(
    painted: Mapping[str, int], changes: Mapping[str, Any], anatomy: Anatomy
) -> dict[str, int]:
    """Return the ranks of one cell: other targets, then another rank."""
    ranks = {name: r for name, r in painted.items() if r}
    if targets := changes.get("target_modules"):
        rank = common_rank(painted)
        roles = set(targets.split("+"))
        ranks = {s.name: rank for s in anatomy.sites if ALL in roles or s.role in roles}
    if "r" in changes:
        ranks = dict.fromkeys(ranks, changes["r"])
    return ranks


def _kept(config: MethodConfig, layers: str, anatomy: Anatomy) -> MethodConfig:
    """Return a config in the layers of one cell."""
    try:
        return in_layers(config, layers, anatomy)
    except ConfigError:
        line = f"layers: no rank is painted in {layers}; paint one there"
        raise FieldError("layers", line) from None


def _value(field: str, label: str, word: str, anatomy: Anatomy, methods: Sequence[str]) -> Any:
    if field == "method":
        named = {name.lower(): name for name in methods}
        if word.lower() not in named:
            raise FieldError(field, f"{label}: no method {word[:40]!r}; use {', '.join(methods)}")
        return named[word.lower()]
    if field == "target_modules":
        roles = list(dict.fromkeys(site.role for site in anatomy.sites))
        for role in (parts := [part.strip() for part in word.split("+")]):
            if role not in (*roles, ALL):
                known = ", ".join([*roles, ALL])
                raise FieldError(field, f"{label}: no {role[:40]!r} here; use {known}, or q+v")
        return "+".join(dict.fromkeys(parts))
    if field == "layers":
        try:
            return read_layers(word, anatomy)
        except ConfigError as error:
            raise FieldError(field, str(error)) from None
    if field == "learning_rate":
        try:
            rate = float(word)
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            raise FieldError(field, f"{label}: {word[:40]!r} is no number above 0, such as 2e-3")
        return rate
    return _whole(field, label, word, 1 if field == "r" else 0)


def _whole(field: str, label: str, word: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,9}", word) or int(word) < least:
        raise FieldError(field, f"{label}: {word[:40]!r} is no whole number of at least {least}")
    return int(word)
