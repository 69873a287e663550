"""How answers that are scored are decoded: greedily, or as a task asks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lora_lab.errors import ConfigError


@dataclass(frozen=True)
class Decoding:
    """Decoding settings of a task; names are transformers' `GenerationConfig`'s.

    >>> task = load_task("mini-e2e", decoding=Decoding(num_beams=4))

    Attributes:
        num_beams: of the beam search; 1: greedy.
        length_penalty: a beam's score is divided by its length to this power; without beams none
            is.
        no_repeat_ngram_size: no so many tokens come twice in a row in an answer; 0: any may.
        max_new_tokens: where an answer that does not end is broken off; None: at half as many
            tokens again as the longest right one has.

    Raises:
        ConfigError: a number that cannot be.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("no_repeat_ngram_size", 0), ("max_new_tokens", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not whole and not (name == "max_new_tokens" and value is None):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from {least} on")
        penalty = self.length_penalty
        plain = isinstance(penalty, int | float) and not isinstance(penalty, bool)
        if not plain or not math.isfinite(penalty):
            raise ConfigError(f"length_penalty is {penalty!r}; it must be a number, and finite")
        if self.num_beams == 1 and penalty != 1:
            raise ConfigError(
                f"length_penalty is {penalty!r}, which acts on the scores of beams; set num_beams "
                "to 2 or more, or leave it out"
            )

    @classmethod
    def of(cls, given: Decoding | Mapping[str, Any]) -> Decoding:
        """Return a decoding of plain values, as a run file has them, or the one that is given.

        Raises:
            ConfigError: a field that there is not, or a value that cannot be.
        """
        return GREEDY.changed(given)

    def changed(self, given: Decoding | Mapping[str, Any]) -> Decoding:
        """Return the decoding that is given, or this one with the fields that a mapping holds.

        Without beams a length penalty that is not asked for goes with them.

        Raises:
            ConfigError: see `of`.
        """
        if isinstance(given, Decoding):
            return given
        known = [field.name for field in dataclasses.fields(self)]
        if not isinstance(given, Mapping):
            raise ConfigError(f"decoding is {given!r}; it must hold fields: {', '.join(known)}")
        if unknown := [name for name in given if name not in known]:
            raise ConfigError(f"decoding has no {unknown[0]!r}; its fields are {', '.join(known)}")
        own = dataclasses.asdict(self)
        if given.get("num_beams") == 1:
            del own["length_penalty"]
        return Decoding(**{**own, **given})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not greedy's; `of` reads them."""
        own = dataclasses.asdict(self)
        return {name: value for name, value in own.items() if value != getattr(GREEDY, name)}

    def settings(self) -> dict[str, Any]:
        """Return what of it is not greedy, as fields of a `GenerationConfig`."""
        found: dict[str, Any] = {}
        if self.num_beams > 1:
            found |= {"num_beams": self.num_beams, "length_penalty": self.length_penalty}
        if self.no_repeat_ngram_size:
            found["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        return found


GREEDY = Decoding()
E2E_OF_THE_PAPER = Decoding(num_beams=10, length_penalty=0.9, no_repeat_ngram_size=4)
"""Hu et al. (2021), table 11: inference on the E2E NLG challenge."""
TRIPLES_OF_THE_PAPER = Decoding(num_beams=10, length_penalty=0.8, no_repeat_ngram_size=4)
"""The same on WebNLG and DART."""

TaskT = TypeVar("TaskT")


def decoded(task: TaskT, given: Decoding | Mapping[str, Any]) -> TaskT:
    """Return a task whose answers are written so.

    Args:
        task: of answers that are written.
        given: how; or {field: value} of what is not to be as the task says.

    Raises:
        ConfigError: what `Decoding.of` refuses, or a task of which no answers are written.
    """
    own = getattr(task, "decoding", None)
    if own is None:
        name = getattr(task, "name", task)
        raise ConfigError(f"{name}: no answers are written token by token; leave out decoding")
    decoding = own.changed(given)
    if decoding == own:
        return task
    return dataclasses.replace(task, decoding=decoding)  # type: ignore[type-var]
