"""What every task has: examples in three parts, and the metrics that score answers to them."""

from __future__ import annotations

import dataclasses
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from lora_lab.errors import TaskError
from lora_lab.redaction import redacted
from lora_lab.tasks.cards import card_of
from lora_lab.tasks.intervals import Interval
from lora_lab.tasks.metrics import NATS, Metric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.look import Look

_LOOK = "lora_lab.tasks.look"  # it stands above the kinds of tasks, which stand above this file


class Task(ABC):
    """Data to learn from, and how answers are scored. How a model learns it: `tasks.families`.

    Attributes:
        name: "mini-nli", or the file or hub id it came from.
        synthetic: made by a program, not by people; `describe` says so.
        train: what is learned from.
        validation: in random order: the first n are a fair sample to score around training.
        test: kept for the end; may be empty.
        metrics: what `score` returns, in this order.
        head: what `load_model` takes besides a name to give the model the head that the task
            needs; empty where it needs none.
        loss_unit: of the loss that its family trains with.
        notes: how its data was read, a line each; a run notes them too.
    """

    name: str
    synthetic: bool
    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]
    metrics: tuple[Metric, ...]
    loss_unit: ClassVar[str] = NATS
    notes: tuple[str, ...] = ()

    @property
    def framing(self) -> str:
        """What stands around what the model reads, for people; "" where nothing is chosen."""
        return ""

    @property
    def head(self) -> dict[str, Any]:
        """See the class; most tasks need none."""
        return {}

    @abstractmethod
    def reference(self, example: Any) -> Any:
        """Return what answers to an example are compared with, as the metrics take it."""

    @abstractmethod
    def input_text(self, example: Any) -> str:
        """Return what a person would type to try the example."""

    def unusable(self, example: Any) -> str:  # noqa: ARG002
        """Return why an example can be neither learned nor scored; "" where it can."""
        return ""

    def check(self, examples: Sequence[Any], what: str = "scored") -> None:
        """Refuse examples, such as those made by hand, that can be neither learned nor scored.

        Args:
            examples: from one of the parts.
            what: that part, for the line.

        Raises:
            TaskError: how many, what is wrong with the first one, and where they stand, from 0.
        """
        wrong = [(at, why) for at, each in enumerate(examples) if (why := self.unusable(each))]
        if wrong:
            rows = some([str(at) for at, _ in wrong])
            raise TaskError(
                f"{self.name}: {len(wrong):,} of {len(examples):,} {what} examples cannot be used, "
                f"the first because {wrong[0][1]} (rows {rows}); mend them, or leave them out"
            )

    def score(self, predictions: Sequence[Any], examples: Sequence[Any]) -> dict[str, float]:
        """Score answers.

        Args:
            predictions: one an example, in the same order.
            examples: from `validation` or `test`.

        Returns:
            {metric's name: score}, without those that say nothing of such examples: BLEU of answers
            of a word or two. `scoring` tells why.

        Raises:
            TaskError: nothing to score, not one prediction an example, or an example without a
                right answer.
        """
        if not examples or len(predictions) != len(examples):
            raise TaskError(
                f"{len(predictions)} predictions for {len(examples)} examples; score needs one "
                "prediction an example, and at least one"
            )
        self.check(examples)
        references = [self.reference(example) for example in examples]
        return {m.name: m.compute(predictions, references) for m in self._fit(references)}

    def intervals(self, predictions: Sequence[Any], examples: Sequence[Any]) -> dict[str, Interval]:
        """Return {metric's name: the 95 % interval} of what `score` returns; {} of one example."""
        references = [self.reference(example) for example in examples]
        found = {m.name: m.between(predictions, references) for m in self._fit(references)}
        return {name: interval for name, interval in found.items() if interval is not None}

    def _fit(self, references: Sequence[Any]) -> list[Metric]:
        """Return the metrics that say something of such references."""
        return [m for m in self.metrics if m.unfit is None or not m.unfit(references)]

    def scoring(self, examples: Sequence[Any]) -> dict[str, str]:
        """Return how answers to examples are scored, for the record.

        Returns:
            {metric's name: its signature, "left out: …" or "not defined …"}, of those that have it.
        """
        told: dict[str, str] = {}
        if not examples or not any(m.signature or m.undefined for m in self.metrics):
            return told
        references = [self.reference(example) for example in examples]
        for metric in self.metrics:
            if metric.unfit is not None and (why := metric.unfit(references)):
                told[metric.name] = f"left out: {why}"
            elif metric.undefined is not None and (why := metric.undefined(references)):
                told[metric.name] = f"not defined and given as 0: {why}"
            elif metric.signature is not None:
                told[metric.name] = metric.signature(references)
        return told

    def look(self, model: LoadedModel | PreTrainedTokenizerBase, *, max_length: int = 128) -> Look:
        """Look at the data before anything is trained: lengths, classes, and what seems wrong.

        Printed, or as the last line of a cell, it shows itself; its fields are plain values. Of
        more than 50,000 training examples a sample is tokenized, and the share is stated.

        Args:
            model: the model with its tokenizer, or a tokenizer alone: then as a decoder reads.
            max_length: tokens of an example, as in `TrainingConfig`.

        Raises:
            TaskError: no family is registered for such tasks, or there is no tokenizer.
        """
        look: Look = import_module(_LOOK).look(self, model, max_length)
        return look

    def __init_subclass__(cls) -> None:
        """Let a task's repr, which a notebook keeps, be the dataclass's without secrets."""
        cls.__repr__ = _repr  # type: ignore[method-assign]

    def describe(self) -> str:
        """Return one line: name, whether it is synthetic, sizes, framing, metrics, notes."""
        label = " (synthetic)" if self.synthetic else ""
        scores = ", ".join(metric.label for metric in self.metrics)
        framing = f"; framing: {self.framing}" if self.framing else ""
        notes = "".join(f"; {note}" for note in self.notes)
        line = f"{self.name}{label}: {self._sizes()}{framing}; scored by {scores}{notes}"
        return redacted(line)

    def _sizes(self) -> str:
        test = f", {len(self.test):,} test" if self.test else ""
        return f"{len(self.train):,} training examples, {len(self.validation):,} validation{test}"


def _repr(task: Any) -> str:
    shown = ", ".join(
        f"{field.name}={getattr(task, field.name)!r}"
        for field in dataclasses.fields(task)
        if field.repr
    )
    card = card_of(task)
    about = "" if card is None else f"\n{card}"
    return redacted(f"{type(task).__qualname__}({shown}){about}")


def shown(example: Any) -> str:
    """Return an example's `text` as people read it, its `pair` on a line of its own."""
    return example.text if example.pair is None else f"{example.text}\n{example.pair}"


def same_letters(text: str) -> str:
    """Return what two texts have in common that differ in case and Unicode form only."""
    return nfc(text).casefold()


def nfc(text: str) -> str:
    """Return a text in Unicode's composed form: é as one letter, however it was written."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, for a line of text."""
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
