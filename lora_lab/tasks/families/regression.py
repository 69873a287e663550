"""Text → number: a head with one output, mean squared error, as for STS-B.

All of it is here: the examples, how tables are read, and how a model learns them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lab.errors import TaskError
from lora_lab.tasks.base import Task, shown
from lora_lab.tasks.encoding import IGNORED
from lora_lab.tasks.families.base import Measured, register_family
from lora_lab.tasks.families.texts import TextFamily
from lora_lab.tasks.measures import is_missing, numbers_in
from lora_lab.tasks.metrics import PEARSON, SPEARMAN, Metric
from lora_lab.tasks.reading import Rows, TextReader
from lora_lab.tasks.table import Table

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

_DIVERGED = 10.0  # times the loss of a head that says 0
_BESIDE_IGNORED = -99.99999  # as float32 the number next to it


@dataclass(frozen=True)
class ScoredText:
    """One text, or a pair of texts, with its number.

    Attributes:
        text: what is scored; of a pair the first.
        target: the number to learn.
        pair: the second text; None where there is one only.
    """

    text: str
    target: float
    pair: str | None = None


@dataclass(frozen=True)
class RegressionTask(Task):
    """Text → a number; see `Task`."""

    name: str
    synthetic: bool
    train: Sequence[ScoredText] = field(repr=False)
    validation: Sequence[ScoredText] = field(repr=False)
    test: Sequence[ScoredText] = field(default=(), repr=False)
    metrics: tuple[Metric, ...] = field(default=(PEARSON, SPEARMAN), repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    loss_unit = "squared error"

    @property
    def head(self) -> dict[str, Any]:
        """The model needs a head with one output; transformers makes a regression of that."""
        return {"num_labels": 1}

    def reference(self, example: ScoredText) -> float:
        """Return the number."""
        return example.target

    def unusable(self, example: ScoredText) -> str:
        """Return why an example cannot be learned: its number is none."""
        return "" if math.isfinite(example.target) else f"its number is {example.target}"

    def input_text(self, example: ScoredText) -> str:
        """Return the text, a pair on two lines."""
        return shown(example)


class TargetReader(TextReader[ScoredText]):
    """Reads texts and numbers."""

    option = "target"
    answer_noun = "number"

    def answers(self, table: Table) -> list[float | None]:
        """Return the numbers; None of what is missing, "NaN" as well.

        Raises:
            TaskError: what is no finite number.
        """
        found: list[float | None] = []
        for number, text in enumerate(table.texts(self._answer), 1):
            try:
                value = None if is_missing(text) else float(text)
            except ValueError:
                value = math.nan
            if value is not None and not math.isfinite(value):
                comma = bool(numbers_in([text]))
                fix = (
                    "write its decimals behind a point"
                    if comma
                    else "regression needs one (of names of classes: label= in place of target=)"
                )
                raise TaskError(
                    f"{table.place(number)} has {text[:40]!r} in column {self._answer!r}, "
                    f"which is no number; {fix}"
                )
            found.append(value)
        return found

    def example(self, text: str, answer: float, pair: str | None) -> ScoredText:
        """Make one row."""
        return ScoredText(text, answer, pair)

    def key(self, row: ScoredText) -> tuple[str, str | None]:
        """Return the row without its number."""
        return row.text, row.pair

    def task(self, name: str, train: Rows, validation: Rows, test: Rows) -> RegressionTask:
        """Make the task."""
        return RegressionTask(name, False, tuple(train), tuple(validation), tuple(test))


def step_loss(output: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """Return one pass's share of the step's mean squared error, in float32.

    Args:
        output: the model's, with logits of shape (batch, 1).
        labels: float32, (batch,).
        num_items_in_batch: texts of all passes of the step.
    """
    return (output.logits.squeeze(-1).float() - labels).square().sum() / num_items_in_batch


@register_family
class Regression(TextFamily):
    """A model with a head of one output."""

    kind = RegressionTask
    tries = "one text, scored"
    loss = staticmethod(step_loss)

    @classmethod
    def check(cls, lm: LoadedModel, task: RegressionTask) -> None:
        """Refuse a model without a head of one output."""
        kind = f"{task.name} is text → one number"
        cls.check_head(lm, kind, kind, outputs=1, load="load_model(…, num_labels=1)")

    @property
    def rise(self) -> float:
        """Ten times what a head that says 0 costs: targets have any scale."""
        squares = [example.target**2 for example in self.task.train]
        return _DIVERGED * (math.fsum(squares) / len(squares) or 1.0)

    @property
    def chance(self) -> float | None:
        """The loss of one who always says the mean: the targets' variance."""
        return statistics.pvariance(example.target for example in self.task.train)

    def target(self, example: ScoredText) -> float:
        """Return the number; transformers' Trainer leaves out -100, so that one moves a little."""
        return _BESIDE_IGNORED if example.target == IGNORED else example.target

    def right(self, example: ScoredText) -> str:
        """Return the number as people read it."""
        return self.shown(example.target)

    def shown(self, answer: float) -> str:
        """Return a number with four digits."""
        return f"{answer:.4g}"

    def measure(self, batch: dict[str, Tensor]) -> Measured:
        """Return the sum of the squared errors, how many they are, and the numbers."""
        labels = batch.pop("labels")
        output = self.model(**batch)
        loss, answers = step_loss(output, labels, 1).item(), output.logits.squeeze(-1).float()
        each = [(one, 1) for one in (answers - labels).square().tolist()]
        return Measured(loss, len(labels), answers.tolist(), each)

    def answer(self, text: str, max_new_tokens: int) -> str:  # noqa: ARG002
        """Return the model's number for a text, or for a pair on two lines."""
        return self.shown(float(self.logits(self.typed(text))))
