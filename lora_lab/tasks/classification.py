"""What a classification task is: texts, or pairs of them, each with the name of its class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_lab.errors import TaskError


@dataclass(frozen=True)
class LabelledText:
    """One text, or a pair of texts, with its class.

    Attributes:
        text: what is classified; of a pair the first, such as the premise.
        label: its class, one of the task's `labels`.
        pair: the second text, such as the hypothesis; None where there is one only.
    """

    text: str
    label: str
    pair: str | None = None

    @property
    def shown(self) -> str:
        """The text as people read it, the pair on a line of its own."""
        return self.text if self.pair is None else f"{self.text}\n{self.pair}"


@dataclass(frozen=True)
class ClassificationTask:
    """Text → one of some classes, in three parts.

    Attributes:
        name: "mini-nli", or the file or hub id it came from.
        synthetic: made by a program, not by people; `describe` says so.
        labels: the names of the classes; a class's place here is its number.
        train: what is learnt from.
        validation: in random order: the first n are a fair sample to score around training.
        test: kept for the end; may be empty.
    """

    name: str
    synthetic: bool
    labels: tuple[str, ...]
    train: Sequence[LabelledText] = field(repr=False)
    validation: Sequence[LabelledText] = field(repr=False)
    test: Sequence[LabelledText] = field(default=(), repr=False)

    def score(
        self, predictions: Sequence[str], examples: Sequence[LabelledText]
    ) -> dict[str, float]:
        """Score predicted classes.

        Args:
            predictions: one name of a class an example, in the same order.
            examples: from `validation` or `test`.

        Returns:
            {"accuracy": 0 to 100}, and of two classes "matthews" too: Matthews's correlation
            times 100, as GLUE has it for CoLA; 0 where only one class is there or predicted.

        Raises:
            TaskError: nothing to score, not one prediction an example, or no class of the task.
        """
        if not examples or len(predictions) != len(examples):
            raise TaskError(
                f"{len(predictions)} predictions for {len(examples)} examples; score needs one "
                "prediction an example, and at least one"
            )
        if unknown := set(predictions) - set(self.labels):
            raise TaskError(
                f"{min(unknown)!r} is no class of {self.name}; its classes are {some(self.labels)}"
            )
        pairs = [(p, e.label) for p, e in zip(predictions, examples, strict=True)]
        scores = {"accuracy": 100 * sum(p == label for p, label in pairs) / len(pairs)}
        if len(self.labels) == 2:
            scores["matthews"] = 100 * _matthews(
                [(p == self.labels[1], label == self.labels[1]) for p, label in pairs]
            )
        return scores

    def describe(self) -> str:
        """Return one line: the name, whether it is synthetic, the sizes and the classes."""
        label = " (synthetic)" if self.synthetic else ""
        test = f", {len(self.test):,} test" if self.test else ""
        return (
            f"{self.name}{label}: {len(self.train):,} training examples, {len(self.validation):,} "
            f"validation{test}; {len(self.labels)} classes ({some(self.labels)}); scored by "
            "accuracy"
        )


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, for a line of text."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _matthews(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Return φ of a 2 × 2 table (Matthews, 1975), 0 where one of its margins is empty.

    Args:
        pairs: (predicted, true) of each example.
    """
    both = sum(p and t for p, t in pairs)
    predicted, true = sum(p for p, _ in pairs), sum(t for _, t in pairs)
    count = len(pairs)
    spread = predicted * (count - predicted) * true * (count - true)
    return (count * both - predicted * true) / math.sqrt(spread) if spread else 0.0
