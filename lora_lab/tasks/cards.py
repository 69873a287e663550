"""Data cards: what an embedded task is made of, and how hard it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

_CARD = "_lora_lab_card"
TaskT = TypeVar("TaskT")


@dataclass(frozen=True)
class DataCard:
    """What people should know of a data set before they trust a score on it.

    Attributes:
        about: what is asked and what is answered.
        made: where the texts come from.
        easy: what is learned soon.
        hard: what is left then.
        floor: {metric: score of an answer that reads nothing}, on the validation part of seed 0.
        floor_is: that answer.
        ceiling: {metric: a score that is good}, as `floor`; {} where it is 100.
        ceiling_is: whose score that is.
        mirrors: the public data set that it is a small likeness of.
        language: of the texts.
        license: of the texts.
    """

    about: str
    made: str
    easy: str
    hard: str
    floor: Mapping[str, float]
    floor_is: str
    mirrors: str
    ceiling: Mapping[str, float] | None = None
    ceiling_is: str = ""
    language: str = "English"
    license: str = "the project's own (Apache-2.0)"

    def __str__(self) -> str:
        lines = [
            f"{self.about}; a small likeness of {self.mirrors}",
            f"{self.made}; {self.language}; license: {self.license}",
            f"soon learned: {self.easy}; hard: {self.hard}",
            f"without reading ({self.floor_is}): {_scores(self.floor)}",
        ]
        if self.ceiling:
            lines.append(f"to be had ({self.ceiling_is}): {_scores(self.ceiling)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return {name: value for name, value in vars(self).items() if value not in (None, "")}


def carded(task: TaskT, card: DataCard | None) -> TaskT:
    """Return the task with its card; a copy with other examples has none."""
    object.__setattr__(task, _CARD, card)
    return task


def card_of(task: Any) -> DataCard | None:
    """Return a task's card; None where it has none."""
    found: DataCard | None = getattr(task, _CARD, None)
    return found


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in scores.items())
