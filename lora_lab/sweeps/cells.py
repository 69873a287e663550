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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab._util.format import shown
from lora_lab.errors import ConfigError
from lora_lab.methods.combined import as_config, method_name
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.registry import method_of
from lora_lab.runs.training_config import UNTOLD, TrainingConfig
from lora_lab.sweeps.layers import has_targets, in_layers, read_layers

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy

_MOST_CELLS = 100_000
_METHODS = "configs"  # in a grid: whole methods, each a list of configs
_LAYERS = "layers"
_RANK = "r"  # whatever a method's config calls it
_LARGEST = 1e300  # of a number that is drawn
_DRAWS = "choice", "uniform", "log_uniform"
_LONGEST = 200  # letters of a field's name; messages are a line


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
        for name in (*self.grid, *self.random):
            if not str(name).isprintable() or len(str(name)) > _LONGEST:
                raise ConfigError(f"{shown(name)} is no setting; a sweep varies names such as r")
        if both := self.grid.keys() & self.random.keys():
            raise ConfigError(f"{min(both)} is in grid and in random; leave it in one of them")
        for name, values in self.grid.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"grid {name} is {values!r}; it must be a list of values")
        for name, draw in self.random.items():
            _check_draw(name, draw)
        if not isinstance(self.samples, int) or isinstance(self.samples, bool) or self.samples < 1:
            raise ConfigError(
                f"samples is {shown(self.samples)}; it must be a whole number above 0"
            )
        count = self.samples * math.prod(map(len, self.grid.values()))
        if count > _MOST_CELLS:
            raise ConfigError(
                f"the sweep has {shown(count)} cells; it must be at most {_MOST_CELLS:,}"
            )


class Varied(NamedTuple):
    """What changes make of a method.

    Attributes:
        config: the method's.
        has: those of the changed fields that it has.
        label: what else people tell it by.
    """

    config: MethodConfig
    has: Set[str]
    label: Mapping[str, Any] = {}


class UnusedFieldError(ConfigError):
    """A field changes no cell; `field` says which."""

    def __init__(self, field: str, line: str) -> None:
        self.field = field
        super().__init__(line)


def cells(
    config: MethodConfig | Sequence[MethodConfig],
    training: TrainingConfig,
    space: Space,
    anatomy: Anatomy | None = None,
) -> tuple[Cell, ...]:
    """Return the cells, each once, in the order of the grid; see `expand`.

    "r" is the rank of every method that has one, whatever its config calls it.

    Args:
        config: the method's, or a list of them, that the fields change.
        training: the same.
        space: what is tried.
        anatomy: of the model; needed where "layers" is tried.

    Raises:
        ConfigError: a field that neither has, or a value that it does not take; all cells are
            looked at, so that a sweep fails before it starts or not at all.
    """
    if space.has_layers and anatomy is None:
        raise ConfigError("layers are those of a model; pass its anatomy")
    base, labels = as_config(config), _labels(space)
    tried: dict[str, None] = {}

    def vary(changes: Mapping[str, Any]) -> Varied:
        own = _method(changes[_METHODS]) if _METHODS in changes else base
        label = labels[repr(own)] if _METHODS in changes else {}
        tried.update(dict.fromkeys(type(part).__name__ for part in own.parts))
        has = {_METHODS}
        for name, value in changes.items():
            parts = [(part, _field(part, name)) for part in own.parts]
            if any(field_ for _, field_ in parts):
                has.add(name)
                own = as_config([_replaced(p, f, value) if f else p for p, f in parts])
        if anatomy is not None and _LAYERS in changes and has_targets(own):
            # Last, for other changes may choose other targets and ranks.
            has.add(_LAYERS)
            own = in_layers(own, changes[_LAYERS], anatomy)
        return Varied(own, has, label)

    try:
        return expand(_changes(space, anatomy), training, vary)
    except UnusedFieldError as error:
        methods = ", ".join(tried)
        if error.field == _LAYERS:
            line = f"layers: {methods} has no target_modules to choose from; leave layers out"
        else:
            line = f"neither {methods} nor TrainingConfig has a field {error.field!r}"
        raise ConfigError(line) from None


def expand(
    combinations: Iterable[Mapping[str, Any]],
    training: TrainingConfig,
    vary: Callable[[Mapping[str, Any]], Varied],
) -> tuple[Cell, ...]:
    """Return the cells of combinations of changes, each once.

    A field changes the methods that have it and leaves the others as they are: a rank means nothing
    to BitFit, which is then trained once.

    Args:
        combinations: {field: value} each.
        training: that their fields of `TrainingConfig` change.
        vary: makes the method's config of the other fields.

    Raises:
        UnusedFieldError: a field that changes no method.
        ConfigError: a value that cannot be.
    """
    of_training = {f.name for f in dataclasses.fields(TrainingConfig)}
    found: dict[str, Cell] = {}
    made: dict[str, Varied] = {}
    idle: set[str] = set()
    used: set[str] = set()
    for changes in combinations:
        own = {name: value for name, value in changes.items() if name not in of_training}
        if (key := repr(own)) not in made:
            made[key] = vary(own)
        config, has, label = made[key]
        settings = training
        for name, value in changes.items():
            settings = _replaced(settings, name, value) if name in of_training else settings
        known = {k: v for k, v in changes.items() if k in has or k in of_training}
        idle |= changes.keys() - known.keys()
        used |= known.keys()
        told = {k: v for k, v in known.items() if k != _METHODS}
        cell = cell_of(config.parts, settings, {**label, **told})
        found.setdefault(cell.id, cell)
    if never := idle - used:
        raise UnusedFieldError(min(never), f"no method has a field {min(never)!r}")
    return tuple(found.values())


def skipped_fields(cells: Iterable[Cell], fields: Iterable[str]) -> str:
    """Say which methods do not have which of a sweep's fields; "" where all have all.

    Args:
        cells: of the sweep.
        fields: that it varies.
    """
    has: dict[str, set[str]] = {}
    for cell in cells:
        has.setdefault(method_name(cell.configs), set()).update(cell.changes)
    varied = [name for name in fields if name != _METHODS]
    lacks = {m: [f for f in varied if f not in known] for m, known in has.items()}
    return "; ".join(
        f"{method} has no {' and no '.join(names)}" for method, names in lacks.items() if names
    )


def cell_of(
    configs: Sequence[MethodConfig], training: TrainingConfig, changes: Mapping[str, Any]
) -> Cell:
    """Return the cell that trains these configs, under the id that it has in any sweep."""
    own = tuple(configs)
    # In steps, as it always was: a share that comes to as many trains the same. And so does an MLP
    # that keeps less.
    settings = training.to_dict() | {"recompute_mlp": bool(training.recompute_mlp)}
    if training.max_steps > 0:
        settings["warmup_steps"] = training.warmup
    settings = {name: own for name, own in settings.items() if (name, own) not in UNTOLD.items()}
    told = [[type(c).__name__, c.to_dict()] for c in own], settings
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=list).encode()).hexdigest()
    return Cell(digest[:10], changes, own, training)


def _changes(space: Space, anatomy: Anatomy | None) -> Iterator[dict[str, Any]]:
    generator = random.Random(f"sweep {space.seed}")
    for values in itertools.product(*space.grid.values()):
        fixed = dict(zip(space.grid, values, strict=True))
        for _ in range(space.samples if space.random else 1):
            drawn = {name: _draw(generator, how) for name, how in space.random.items()}
            changes = fixed | drawn
            if anatomy is not None and _LAYERS in changes:
                changes[_LAYERS] = read_layers(changes[_LAYERS], anatomy)
            yield changes


def _labels(space: Space) -> dict[str, dict[str, Any]]:
    """Return {configs as text: how people tell them apart}: the method, and what differs in it."""
    drawn = space.random.get(_METHODS, {}).get("choice", ())
    named = list(map(_method, [*space.grid.get(_METHODS, ()), *drawn]))
    labels: dict[str, dict[str, Any]] = {}
    for own in named:
        name = "+".join(part.method for part in own.parts)
        alike = [each.parts for each in named if each.method == own.method]
        label: dict[str, Any] = {"method": name}
        for number, part in enumerate(own.parts):
            label |= {
                field_: value
                for field_, value in part.to_dict().items()
                if any(each[number].to_dict().get(field_) != value for each in alike)
            }
        labels[repr(own)] = label
    return labels


def _method(given: Any) -> MethodConfig:
    """Return a method's config: of one, or of several combined."""
    try:
        return as_config(given)
    except ConfigError as error:
        raise ConfigError(f"configs: {error}") from None


def _field(config: MethodConfig, name: str) -> str:
    """Return what a config calls a field, "" where it has none."""
    if name in {f.name for f in dataclasses.fields(config)}:  # type: ignore[arg-type]
        return name
    return method_of(config).rank if name == _RANK else ""


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
    numbers = [v for v in numbers if abs(v) <= _LARGEST]
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
