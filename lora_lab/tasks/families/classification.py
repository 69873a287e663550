"""Text → class: a head with one output a class, cross-entropy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from lora_lab.anatomy.heads import class_names, class_numbers
from lora_lab.tasks.base import some
from lora_lab.tasks.classification import ClassificationTask, LabeledText
from lora_lab.tasks.families.base import Measured, register_family
from lora_lab.tasks.families.texts import TextFamily

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


def step_loss(
    output: Any, labels: Tensor, num_items_in_batch: Any, label_smoothing: float = 0.0
) -> Tensor:
    """Return one pass's share of the step's mean cross-entropy, in float32.

    A …ForSequenceClassification takes the mean of the pass, so that passes of different sizes
    would weigh the same, and some of them are summed over the step by transformers' Trainer.

    Args:
        output: the model's, with logits of shape (batch, classes).
        labels: int64, (batch,).
        num_items_in_batch: texts of all passes of the step.
        label_smoothing: ε, as torch's cross_entropy takes it.
    """
    logits = output.logits.float()
    total = cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    return total / num_items_in_batch


def numbers_in(config: Any, labels: Sequence[str]) -> dict[str, int]:
    """Return {class of the task: its number in the model}.

    A model that knows these classes has its own order; else the task's holds.
    """
    known = class_numbers(class_names(config), labels)
    return known or {label: number for number, label in enumerate(labels)}


def in_order(config: Any, labels: Sequence[str]) -> list[str]:
    """Return a task's classes in the order of the model's outputs."""
    numbers = numbers_in(config, labels)
    return sorted(labels, key=numbers.__getitem__)


@register_family
class Classification(TextFamily):
    """A model with a head for the task's classes."""

    kind = ClassificationTask
    tries = "one text, classified"
    smooths = True
    loss = staticmethod(step_loss)

    def __init__(self, lm: LoadedModel, task: ClassificationTask, max_length: int) -> None:
        super().__init__(lm, task, max_length)
        self._numbers = numbers_in(lm.model.config, task.labels)
        self._names = {number: label for label, number in self._numbers.items()}

    @classmethod
    def check(cls, lm: LoadedModel, task: ClassificationTask) -> None:
        """Refuse a model without a head for so many classes."""
        count, name = len(task.labels), task.name
        cls.check_head(
            lm,
            kind=f"{name} is text → one of {count} classes",
            needs=f"{name} has {count} ({some(task.labels)})",
            outputs=count,
            load="load_model(…, labels=task.labels)",
        )

    @classmethod
    def notes(cls, lm: LoadedModel, task: ClassificationTask) -> list[str]:
        """Tell of classes that the model calls otherwise."""
        own, order = class_names(lm.model.config), in_order(lm.model.config, task.labels)
        found = {example.label for example in task.train}
        lone = [f"all training rows are of one class ({some(sorted(found))})"] * (len(found) == 1)
        if not own or list(own) == order:
            return lone
        if class_numbers(own, task.labels) is None:
            line = f"the model's head is for {some(own)}; it is trained for {some(order)} instead"
            return [*lone, line]
        taken = [f"{label} for {name}" for label, name in zip(order, own, strict=True)]
        return [*lone, f"the model's head has its own names: {some(taken)} is taken"]

    @property
    def chance(self) -> float | None:
        """The loss of one who only knows how frequent the classes are, in nats: their entropy."""
        counts = Counter(example.label for example in self.task.train).values()
        total = sum(counts)
        return -math.fsum(n / total * math.log(n / total) for n in counts)

    def target(self, example: LabeledText) -> int:
        """Return the number that the class has in the model."""
        return self._numbers[example.label]

    def right(self, example: LabeledText) -> str:
        """Return the name of the class."""
        return example.label

    def measure(self, batch: dict[str, Tensor]) -> Measured:
        """Return the sum over the texts, nats, how many they are, and the likeliest classes."""
        labels = batch.pop("labels")
        logits = self.model(**batch).logits.float()
        loss = cross_entropy(logits, labels, reduction="sum").item()
        each = cross_entropy(logits, labels, reduction="none").tolist()
        answers = [self._names[n] for n in logits.argmax(-1).tolist()]
        return Measured(loss, len(labels), answers, [(one, 1) for one in each])

    def answer(self, text: str, max_new_tokens: int) -> str:  # noqa: ARG002
        """Return the likeliest class of a text, or of a pair on two lines, and how likely it is."""
        chances = self.logits(self.typed(text)).softmax(-1)
        return f"{self._names[int(chances.argmax())]} ({float(chances.max()):.0%})"
