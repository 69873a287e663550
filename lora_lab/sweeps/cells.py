"""What a sweep trains: every combination of a grid, or random draws, as cells with names.

A cell's id is a hash of what it trains, so that the same cell has the same folder on every call
and on every machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.sweeps.layers import in_layers, read_layers
from lora_lab.training.config import TrainingConfig

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy

_METHODS = "configs"  # in a grid: whole methods, each a list of configs
_LAYERS = "layers"
_DRAWS = "choice", "uniform", "log_uniform"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        id: ten hexadecimal digits.
        changes: {field: value} that this cell differs by, for people.
        configs: the method's, a combination's several.
        training: how it trains.
    """

    id: str
    changes: Mapping[str, Any]
    configs: tuple[MethodConfig, ...]
    training: TrainingConfig

    def __str__(self) -> str:
        return ", ".join(f"{key} {_shown(value)}" for key, value in self.changes.items())


@dataclass(frozen=True)
class Space:
    """What is tried.

    Attributes:
        grid: {field: values}; every combination is trained. A field is one of the method's
            config or of `TrainingConfig` ("seed" too); "configs" lists whole methods, and
            "layers" keeps the targets in some of the layers: ["0-14", "15-29", "all"].
        random: {field: how it is drawn}: {"choice": […]}, {"uniform": [low, high]} or
            {"log_uniform": [low, high]}; drawn `samples` times for each combination of the grid.
        samples: draws; 1 where nothing is random.
        seed: of the draws.
    """

    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    random: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    samples: int = 1
    seed: int = 0

    @property
    def has_layers(self) -> bool:
        """Whether its cells cannot be told without the model's anatomy."""
        return _LAYERS in self.grid or _LAYERS in self.random

    def __post_init__(self) -> None:
        if not self.grid and not self.random:
            raise ConfigError("the sweep varies nothing; give it a grid, such as r: [1, 4, 16]")
        if both := self.grid.keys() & self.random.keys():
            raise ConfigError(f"{min(both)} is in grid and in random; leave it in one of them")
        for name, values in self.grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"grid {name} is {values!r}; it must be a list of values")
        for name, draw in self.random.items():
            _check_draw(name, draw)
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise ConfigError(f"samples is {self.samples!r}; it must be a whole number above 0")


def cells(
    configs: Sequence[MethodConfig],
    training: TrainingConfig,
    space: Space,
    anatomy: Anatomy | None = None,
) -> tuple[Cell, ...]:
    """Return the cells, each once, in the order of the grid.

    Args:
        configs: of the method that the fields change.
        training: the same.
        space: what is tried.
        anatomy: of the model; needed where "layers" is tried.

    Raises:
        ConfigError: a field that neither has, or a value that it does not take; all cells are
            looked at, so that a sweep fails before it starts or not at all.
    """
    if space.has_layers and anatomy is None:
        raise ConfigError("layers are those of a model; pass its anatomy")
    labels = _labels(space)
    found: dict[str, Cell] = {}
    for changes in _changes(space):
        if anatomy is not None and _LAYERS in changes:
            changes[_LAYERS] = read_layers(changes[_LAYERS], anatomy)
        cell = _cell(configs, training, changes, labels, anatomy)
        found.setdefault(cell.id, cell)
    return tuple(found.values())


def cell_of(
    configs: Sequence[MethodConfig], training: TrainingConfig, changes: Mapping[str, Any]
) -> Cell:
    """Return the cell that trains these configs, under the id that it has in any sweep."""
    own = tuple(configs)
    told = [[type(c).__name__, c.to_dict()] for c in own], training.to_dict()
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=list).encode()).hexdigest()
    return Cell(digest[:10], changes, own, training)


def _changes(space: Space) -> Iterator[dict[str, Any]]:
    generator = random.Random(f"sweep {space.seed}")
    for values in itertools.product(*space.grid.values()):
        fixed = dict(zip(space.grid, values, strict=True))
        for _ in range(space.samples if space.random else 1):
            drawn = {name: _draw(generator, how) for name, how in space.random.items()}
            yield fixed | drawn


def _labels(space: Space) -> dict[str, dict[str, Any]]:
    """Return {configs as text: how people tell them apart}: the method, and what differs in it."""
    drawn = space.random.get(_METHODS, {}).get("choice", ())
    named = list(map(_method, [*space.grid.get(_METHODS, ()), *drawn]))
    names = ["+".join(config.method for config in each) for each in named]
    labels: dict[str, dict[str, Any]] = {}
    for name, own in zip(names, named, strict=True):
        alike = [each for other, each in zip(names, named, strict=True) if other == name]
        label: dict[str, Any] = {"method": name}
        for part, config in enumerate(own):
            label |= {
                field_: value
                for field_, value in config.to_dict().items()
                if any(each[part].to_dict().get(field_) != value for each in alike)
            }
        labels[repr(own)] = label
    return labels


def _cell(
    configs: Sequence[MethodConfig],
    training: TrainingConfig,
    changes: Mapping[str, Any],
    labels: Mapping[str, Mapping[str, Any]],
    anatomy: Anatomy | None,
) -> Cell:
    own: tuple[Any, ...] = _method(changes.get(_METHODS, configs))
    label = labels[repr(own)] if _METHODS in changes else None
    training_fields = {f.name for f in dataclasses.fields(TrainingConfig)}
    for name, value in changes.items():
        if name in (_METHODS, _LAYERS):
            continue
        if name in training_fields:
            training = _replaced(training, name, value)
            continue
        having = [name in {f.name for f in dataclasses.fields(config)} for config in own]
        if not any(having):
            methods = ", ".join(type(config).__name__ for config in own)
            raise ConfigError(f"neither {methods} nor TrainingConfig has a field {name!r}")
        own = tuple(
            _replaced(config, name, value) if has else config
            for config, has in zip(own, having, strict=True)
        )
    if anatomy is not None and _LAYERS in changes:
        # Last, for other changes may choose other targets and ranks.
        own = in_layers(own, changes[_LAYERS], anatomy)
    shown = {k: v for k, v in changes.items() if k != _METHODS}
    if label is not None:
        shown = {**label, **shown}
    return cell_of(own, training, shown)


def _method(given: Any) -> tuple[MethodConfig, ...]:
    """Return a method's configs: of one, or of several combined."""
    configs = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for config in configs:
        if not isinstance(config, MethodConfig):
            raise ConfigError(f"configs holds {config!r}; name methods such as [LoraConfig(r=8)]")
    if not configs:
        raise ConfigError("configs holds an empty list; name at least one method")
    return configs


def _replaced(config: Any, name: str, value: object) -> Any:
    try:
        return config.replace(**{name: value})
    except TypeError as error:  # a list where a number belongs
        raise ConfigError(f"{name} is {value!r}: {error}") from None


def _check_draw(name: str, draw: object) -> None:
    known = ", ".join(_DRAWS)
    if not isinstance(draw, Mapping) or len(draw) != 1 or next(iter(draw)) not in _DRAWS:
        raise ConfigError(f"random {name} is {draw!r}; use one of {known}, such as choice: [1, 4]")
    kind, values = next(iter(draw.items()))
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"random {name}: {kind} is {values!r}; it must be a list")
    if kind == "choice":
        return
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    if len(values) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ConfigError(f"random {name}: {kind} is {values!r}; it must be [lowest, highest]")
    if kind == "log_uniform" and numbers[0] <= 0:
        raise ConfigError(f"random {name}: log_uniform needs numbers above 0, not {values!r}")


def _draw(generator: random.Random, how: Mapping[str, Sequence[Any]]) -> Any:
    kind, values = next(iter(how.items()))
    if kind == "choice":
        return generator.choice(list(values))
    low, high = values
    if kind == "uniform":
        return generator.uniform(low, high)
    return math.exp(generator.uniform(math.log(low), math.log(high)))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value))
    return str(value)
