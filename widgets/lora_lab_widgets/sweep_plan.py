"""The sweep that the workbench would train: texts such as "4, 8, 16" to cells, and no run yet."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.anatomy.types import Anatomy
from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.combined import as_config
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.plain import method_to_dict
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cells import Cell, cell_of
from lora_lab.sweeps.layers import ALL, in_layers, read_layers
from lora_lab.sweeps.store import checked_name
from lora_lab_widgets.methods import common_rank
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
_PAINTED = "r", "target_modules", "layers"  # what only methods with painted ranks have
_OF_TRAINING = "learning_rate", "seed"


@dataclass(frozen=True)
class SweepTexts:
    """What a person typed, each value one that can be.

    Attributes:
        axes: {field: values}, of those that are filled in.
        stop_at: the first step at which what is behind is ended; None: never.
        name: of the sweep's folder.
    """

    axes: Mapping[str, Sequence[Any]]
    stop_at: int | None
    name: str

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
        texts: {field of `AXES`, or "stop_at" or "name": text}; values are parted by commas.
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
    return SweepTexts(axes, stop_at, name)


def cells_of(texts: SweepTexts, plan: PlanModel) -> tuple[Cell, ...]:
    """Return every combination as a cell, each once.

    An axis changes the methods that have it and leaves the others as they are: a rank means nothing
    to BitFit, which is then trained once.

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
    settings, painted, anatomy = plan.settings, plan.ranks, plan.anatomy
    try:
        training = TrainingConfig.from_dict(plan.training())
    except TypeError as error:
        raise ConfigError(f"the settings of the run cannot be: {error}") from None
    found: dict[str, Cell] = {}
    made: dict[tuple[Any, ...], tuple[MethodConfig, ...]] = {}
    used: set[str] = set()
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        own = {**settings, **({"method": chosen["method"]} if "method" in chosen else {})}
        method = plan.method(own)
        has = {"method", *_OF_TRAINING}
        has |= {*_PAINTED} if method.paints else {"r"} if "r" in method.fields else set()
        changes = {field: value for field, value in chosen.items() if field in has}
        used |= changes.keys()
        fields = {field: changes[field] for field in _OF_TRAINING if field in changes}
        key = tuple(changes.get(field) for field in AXES if field not in _OF_TRAINING)
        if key not in made:
            if "r" in changes and not method.paints:
                own["r"] = changes["r"]
            ranks = _painted(painted, changes, anatomy) if method.paints else painted
            configs = plan.configs(own, ranks, training.max_steps)
            made[key] = _kept(configs, changes, anatomy)
        cell = cell_of(made[key], training.replace(**fields), changes)
        found.setdefault(cell.id, cell)
    if idle := axes.keys() - used:
        field = min(idle)
        name = plan.method(settings).name if "method" not in axes else "none of the methods"
        says = "has" if "method" in axes else "has no"
        raise FieldError(field, f"{AXES[field]}: {name} {says} {AXES[field]}; leave it empty")
    return tuple(found.values())


def as_grid(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Return the cells as the grid of a sweep file: the same cells, under the same ids."""
    configs = list({repr(cell.configs): cell.configs for cell in cells}.values())
    grid: dict[str, list[Any]] = {}
    if len(configs) > 1:
        ranks = [_only_rank(own, configs[0]) for own in configs]
        if all(ranks):
            grid["r"] = ranks
        else:
            grid["configs"] = [[method_to_dict(config) for config in own] for own in configs]
    for field in _OF_TRAINING:
        values = list(dict.fromkeys(getattr(cell.training, field) for cell in cells))
        if len(values) > 1:
            grid[field] = values
    # A sweep of one cell varies nothing, and is a sweep all the same.
    return grid or {"seed": [cells[0].training.seed]}


def _only_rank(own: tuple[MethodConfig, ...], first: tuple[MethodConfig, ...]) -> int | None:
    """Return the rank, where it is all that LoRA's config has of its own."""
    config, base = own[0], first[0]
    if len(own) != 1 or len(first) != 1 or not isinstance(config, LoraConfig):
        return None
    if not isinstance(base, LoraConfig) or config.replace(r=base.r) != base:
        return None
    return config.r


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


def _kept(
    configs: tuple[MethodConfig, ...], changes: Mapping[str, Any], anatomy: Anatomy
) -> tuple[MethodConfig, ...]:
    """Return the configs in the layers of one cell."""
    if (layers := changes.get("layers")) is None:
        return configs
    try:
        return in_layers(as_config(configs), layers, anatomy).parts
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
