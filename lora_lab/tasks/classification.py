"""Text → class: texts, or pairs of them, each with the name of its class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from lora_lab._util.format import plural
from lora_lab.errors import TaskError
from lora_lab.tasks import tables
from lora_lab.tasks.base import Task, nfc, same_letters, shown, some
from lora_lab.tasks.intervals import Interval
from lora_lab.tasks.measures import MANY, are_measures, numbers_in
from lora_lab.tasks.metrics import ACCURACY, F1, MACRO_F1, MATTHEWS, Metric
from lora_lab.tasks.reading import Rows, TextReader
from lora_lab.tasks.table import Column, Table

_A_SENTENCE = 4  # words
_OF_INFERENCE = {"entailment", "neutral", "contradiction"}


@dataclass(frozen=True)
class LabeledText:
    """One text, or a pair of texts, with its class.

    Attributes:
        text: what is classified; of a pair the first, such as the premise.
        label: its class, one of the task's `labels`.
        pair: the second text, such as the hypothesis; None where there is one only.
    """

    text: str
    label: str
    pair: str | None = None


@dataclass(frozen=True)
class ClassificationTask(Task):
    """Text → one of some classes; see `Task`.

    Attributes:
        labels: the names of the classes; a class's place here is its number.
        metrics: by default accuracy; of two classes Matthews's correlation and the second one's F1
            too, of more the mean of all classes' F1.
    """

    name: str
    synthetic: bool
    labels: tuple[str, ...]
    train: Sequence[LabeledText] = field(repr=False)
    validation: Sequence[LabeledText] = field(repr=False)
    test: Sequence[LabeledText] = field(default=(), repr=False)
    metrics: tuple[Metric, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    loss_unit = "nats per text"

    def __post_init__(self) -> None:
        if not self.metrics:
            more = (MATTHEWS, F1) if len(self.labels) == 2 else (MACRO_F1,)
            object.__setattr__(self, "metrics", (ACCURACY, *more))

    @property
    def head(self) -> dict[str, Any]:
        """The model needs a head for the classes."""
        return {"labels": list(self.labels)}

    def reference(self, example: LabeledText) -> int:
        """Return the number of the class."""
        return self.labels.index(example.label)

    def unusable(self, example: LabeledText) -> str:
        """Return why an example is not of this task: its class is none of the head's."""
        if example.label in self.labels:
            return ""
        return f"its class {example.label!r} is none of the task's ({some(self.labels)})"

    def input_text(self, example: LabeledText) -> str:
        """Return the text, a pair on two lines."""
        return shown(example)

    def score(
        self, predictions: Sequence[str], examples: Sequence[LabeledText]
    ) -> dict[str, float]:
        """Score predicted classes, by their names; see `Task.score`.

        Raises:
            TaskError: nothing to score, not one prediction an example, or no class of the task.
        """
        if unknown := set(predictions) - set(self.labels):
            raise TaskError(
                f"{min(unknown)!r} is no class of {self.name}; its classes are {some(self.labels)}"
            )
        return super().score(list(map(self.labels.index, predictions)), examples)

    def intervals(
        self, predictions: Sequence[str], examples: Sequence[LabeledText]
    ) -> dict[str, Interval]:
        """Return the intervals of what `score` returns; see `Task.intervals`."""
        return super().intervals(list(map(self.labels.index, predictions)), examples)

    def _sizes(self) -> str:
        held_out = {example.label for example in self.validation}
        absent = [label for label in self.labels if label not in held_out]
        never = (
            f", of which {some(absent)} never among the validation ones"
            if held_out and absent
            else ""
        )
        return f"{super()._sizes()}; {len(self.labels)} classes ({some(self.labels)}){never}"


class LabelReader(TextReader[LabeledText]):
    """Reads texts and classes.

    The classes are the values of the label column in the training rows: in the column's own order
    where it has one (pandas' Categorical, a ClassLabel of `datasets`), else sorted; whole numbers
    by their size, and their names are their digits.
    """

    option = "label"
    answer_noun = "class"

    def __init__(
        self, table: Table, text: Column | None, answer: Column | None, pair: Column | None
    ) -> None:
        super().__init__(table, text, answer, pair)
        self._order = table.classes.get(str(answer), ())

    def answers(self, table: Table) -> list[str | None]:
        """Return the names of the rows' classes.

        Raises:
            TaskError: a number that is not whole.
        """
        texts = table.texts(self._answer)
        if str(self._answer) not in table.floats:
            return [text if text.strip() else None for text in texts]
        found: list[str | None] = []
        for number, text in enumerate(texts, 1):
            value = float(text) if text else math.nan
            if not math.isnan(value) and not value.is_integer():
                raise TaskError(
                    f"{table.place(number)} has {text} in column {self._answer!r}, which "
                    "is no class but a measure; classification needs names or whole numbers (of "
                    f"a number to learn: target={self._answer!r} in place of label=)"
                )
            found.append(None if math.isnan(value) else str(int(value)))
        return found

    def no_answers(self, answers: Sequence[str | None], table: Table) -> set[str | None]:
        """Return "-" beside the classes of inference, and what -1 is read as by a ClassLabel.

        So SNLI marks what its annotators did not agree on, in its files and on the hub.
        """
        found = {*answers} - {None, "-"}
        if not found or not {str(label).casefold() for label in found} <= _OF_INFERENCE:
            return set()
        return {"-", None} if str(self._answer) in table.classes else {"-"}

    def example(self, text: str, answer: str, pair: str | None) -> LabeledText:
        """Make one row."""
        return LabeledText(text, answer, pair)

    def key(self, row: LabeledText) -> tuple[str, str | None]:
        """Return the row without its class."""
        return row.text, row.pair

    def stratum(self, row: LabeledText) -> str:
        """Return the class: one that is scored is learned too."""
        return row.label

    def check(self, parts: Mapping[str, tuple[str, list[LabeledText]]]) -> None:
        """Refuse one class only, and classes that are not trained on."""
        source, rows = parts["training"]
        found = {row.label for row in rows}
        labels = _sorted(found)
        if found <= set(self._order):
            labels = tuple(label for label in self._order if label in found)
        if len(labels) < 2:
            raise TaskError(
                f"{source}: column {self._answer!r} holds one class only ({labels[0]!r}); there "
                "is nothing to tell apart"
            )
        for source, rows in parts.values():
            if strange := _sorted({row.label for row in rows} - set(labels)):
                near = [label for label in labels if _as_read(label) == _as_read(strange[0])]
                more = f"; it is {near[0]!r} but for case or blanks" if near else ""
                raise TaskError(
                    f"{source}: class {strange[0]!r} is in no training row; the training rows have "
                    f"{some(labels)}{more}"
                )
        self._labels = labels
        source, rows = parts["training"]
        self._warn_of_alike(source)
        self._doubt_numbers(source, [row.label for row in rows])
        self._doubt_texts(source, len(rows))

    def _doubt_numbers(self, source: str, given: Sequence[str]) -> None:
        """Refuse measures, and tell of numbers that may be some."""
        numbers = numbers_in(self._labels)
        line = f"{source}: column {self._answer!r} holds {len(numbers)} different numbers"
        learn = f"target={self._answer!r} in place of label= learns the number"
        if are_measures(given):
            fraction = next(name for name in self._labels for n in numbers_in([name]) if n % 1)
            raise TaskError(f"{line}, such as {fraction}: no classes but a measure; {learn}")
        if not all(numbers_in([name]) for name in self._labels):
            return  # names too
        if len(numbers) > MANY or any(not number.is_integer() for number in numbers):
            tables.warn(f"{line}, and each is learned as a class; {learn}")

    def _doubt_texts(self, source: str, rows: int) -> None:
        """Tell of a column of texts that are hardly ever the same: they are written, not chosen."""
        sentences = sum(len(label.split()) >= _A_SENTENCE for label in self._labels)
        if 2 * len(self._labels) > rows and 2 * sentences > len(self._labels):
            tables.warn(
                f"{source}: column {self._answer!r} holds {len(self._labels):,} different texts in "
                f"{rows:,} rows, and each is learned as a class; prompt={self._text!r}, "
                f"completion={self._answer!r} learns to write them"
            )

    def _warn_of_alike(self, source: str) -> None:
        """Tell of names that people read as one: they are text like any other, and kept."""
        alike: dict[str, list[str]] = {}
        for label in self._labels:
            alike.setdefault(_as_read(label), []).append(label)
        found = [names for names in alike.values() if len(names) > 1]
        for names in found[:1]:
            look = repr if len({*map(nfc, names)}) == len(names) else ascii
            rest = plural(len(found) - 1, "more group")
            more = f"; so it is with {rest} of names" if found[1:] else ""
            tables.warn(
                f"{source}: classes {' and '.join(map(look, names))} differ by white space, "
                f"case or Unicode form only, and are learned as different ones{more}"
            )

    def task(self, name: str, train: Rows, validation: Rows, test: Rows) -> ClassificationTask:
        """Make the task."""
        return ClassificationTask(
            name, False, self._labels, tuple(train), tuple(validation), tuple(test)
        )


def _as_read(label: str) -> str:
    """Return what people read: names that differ in case and white space only are one."""
    return same_letters("".join(label.split()))


def _sorted(labels: set[str]) -> tuple[str, ...]:
    """Return names in one order everywhere: numbers by their size, "01" before "1" by its text."""
    try:
        sizes = {label: Decimal(label) for label in labels}
    except InvalidOperation:
        return tuple(sorted(labels))
    if not all(size.is_finite() for size in sizes.values()):
        return tuple(sorted(labels))
    return tuple(sorted(labels, key=lambda label: (sizes[label], label)))
