"""What all configs share: plain dicts in and out, and the checks of single fields."""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeGuard

from lora_lab._util.format import shown
from lora_lab.errors import ConfigError

MOST = 10**9  # of steps, of rows, of tokens: more can only be an error, or a trap


class Config:
    """What all configs share: to and from plain dicts, with unknown fields refused.

    Attributes:
        added: fields of later versions. At their defaults they are left out of dicts, so that what
            a dict is hashed for (a sweep's cell) stays what it was, and older versions can read it.
        filled: {field: what its default becomes}, where that is another value.
        told: fields that `to_python` names at their defaults too: code that is shown is whole.
    """

    added: ClassVar[frozenset[str]] = frozenset()
    filled: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    told: ClassVar[frozenset[str]] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types."""
        values = dataclasses.asdict(self)  # type: ignore[call-overload]
        fields = {f.name: f for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {
            name: value
            for name, value in values.items()
            if name not in self.added or value != fields[name].default
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping.

        Raises:
            ConfigError: on a field that does not exist; the nearest name is proposed.
        """
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
                )
                raise ConfigError(f"{cls.__name__} has no field {name!r}; {hint}")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self).from_dict({**self.to_dict(), **changes})

    def to_python(self) -> str:
        """Return the Python expression that builds this config, most default fields left out."""
        shown = []
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            default = f.default_factory() if callable(f.default_factory) else f.default
            if f.name in self.told or value != self.filled.get(f.name, default):
                shown.append(f"{f.name}={value!r}")
        return f"ll.{type(self).__name__}({', '.join(shown)})"


class MethodConfig(Config):
    """What the configs of all methods share: a dataclass of the settings of one method."""

    @property
    def method(self) -> str:
        """The paper's name."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[MethodConfig, ...]:
        """The configs that are trained together: of a single one itself."""
        return (self,)

    @property
    def tokens(self) -> int:
        """Learned tokens that it puts into every sequence, l_p + l_i."""
        return 0

    @property
    def needs_batches(self) -> bool:
        """Whether its adapter starts from data: `attach` has to be given some."""
        return False

    def check_steps(self, total: int) -> None:
        """Refuse a training of so many optimizer steps that it does not fit into.

        Raises:
            ConfigError: the line names the numbers.
        """

    def at_peak(self, total: int) -> Self:  # noqa: ARG002
        """Return the config whose first steps take the most memory of all.

        Args:
            total: optimizer steps of the training.
        """
        return self


def as_names(name: str, value: Any) -> Any:
    """Return a tuple of what is a list or a set of names, the latter by the alphabet; else the
    value: one text, or None.

    Raises:
        ConfigError: it is none of these; the line calls it by `name`.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} is {shown(value)}; it must be a list of names")
    for each in (names := tuple(value)):
        if not isinstance(each, str):
            raise ConfigError(f"{name} has {shown(each)}; it must be a list of names")
    return tuple(sorted(names)) if isinstance(value, (set, frozenset)) else names


def as_layers(name: str, value: Any) -> tuple[int, ...] | None:
    """Return the numbers of blocks, one of which may stand alone; None: nobody has said.

    Raises:
        ConfigError: one is none.
    """
    if value is None:
        return None
    ordered = sorted(value) if isinstance(value, (set, frozenset)) else value
    numbers = tuple(ordered) if isinstance(ordered, Iterable) else (ordered,)
    for number in numbers:
        need_count(name, number, least=0)
    return numbers


def words(targets: Sequence[str] | str) -> str:
    """Return target modules as a title or a table has them."""
    return targets if isinstance(targets, str) else " ".join(targets)


def need_rank(name: str, value: object) -> None:
    """Refuse what is no whole number of at least 1, or of which no tensor can have as many rows."""
    if not _is_whole(value) or value < 1:
        raise ConfigError(f"{name} is {shown(value)}; a rank is a whole number of at least 1")
    _need_at_most(name, value, MOST)


def need_mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return a mapping of names, and refuse anything else."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} is {value!r}; it must be a mapping of names")
    return value


def need_positive(name: str, value: object) -> None:
    """Refuse what is no positive, finite number."""
    if not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
        raise ConfigError(f"{name} is {shown(value)}; it must be a positive number")


def need_number(name: str, value: object, *, least: float = 0) -> None:
    """Refuse what is no number of at least `least`, or that no float can hold."""
    given = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if given is None or not (least <= given <= sys.float_info.max or given == float("inf")):
        raise ConfigError(f"{name} is {shown(value)}; it must be a number of at least {least:g}")


def need_count(name: str, value: object, *, least: int, most: int = 2**63 - 1) -> None:
    """Refuse what is no whole number from `least` to `most`."""
    if not _is_whole(value) or value < least:
        raise ConfigError(
            f"{name} is {shown(value)}; it must be a whole number of at least {least}"
        )
    _need_at_most(name, value, most)


def need_share(name: str, value: object) -> None:
    """Refuse what does not lie in [0, 1)."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {shown(value)}; it must lie in [0, 1)")


def need_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {shown(value)}; use True or False")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _need_at_most(name: str, value: int, most: int) -> None:
    if value > most:
        raise ConfigError(f"{name} is {shown(value)}; it must be at most {most:,}")


def unknown_module(name: str, top: Iterable[str], why: str = "names no module") -> ConfigError:
    """Return the error of an entry of `modules_to_save` that matches nothing.

    Args:
        name: the entry.
        top: the model's children.
        why: what is wrong with it.
    """
    return ConfigError(
        f"modules_to_save entry {name!r} {why}; at the top this model has {', '.join(top)}"
    )
