"""The data of a run whose task has classes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lora_lab.runs.samples import Sample
from lora_lab.tasks.class_encoding import (
    EncodedText,
    class_numbers,
    collate_texts,
    encode_texts,
    text_pad_id,
    without_unknown_types,
)
from lora_lab.tasks.classification import ClassificationTask, LabelledText
from lora_lab.tasks.generation import evaluating, positions
from lora_lab.training.config import TrainingConfig
from lora_lab.training.data import SAMPLES, RunData

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


class ClassificationData(RunData):
    """Texts with classes; held-out ones are classified and scored."""

    def __init__(
        self,
        lm: LoadedModel,
        task: ClassificationTask,
        training: TrainingConfig,
        notes: list[str],
        learned_tokens: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(lm, task, training, notes, learned_tokens, should_stop)
        self._task = task
        self.held_out: list[LabelledText] = list(task.validation[: self.training.eval_examples])
        self.samples = tuple(Sample(e.shown, (e.label,)) for e in self.held_out[:SAMPLES])
        self._numbers = class_numbers(self.model.config, task.labels)
        room = _room(self.model, self.tokenizer) - self._learned_tokens
        self._max_length = min(training.max_length, room)

    @property
    def collate(self) -> Callable[[list[EncodedText]], dict[str, Tensor]]:
        """What pads texts to a batch."""
        return functools.partial(collate_texts, pad=text_pad_id(self.model.config, self.tokenizer))

    @property
    def loss(self) -> Callable[..., Tensor]:
        """Cross-entropy, the mean over all texts of an optimizer step."""
        return step_loss

    def encode(self, examples: Sequence[LabelledText], part: str) -> list[EncodedText]:
        """Encode; a line in the notes tells of texts that were cut."""
        encoded, cut = encode_texts(examples, self._numbers, self.tokenizer, self._max_length)
        if cut:
            self.note(
                f"{cut} of {len(examples)} {part} texts were cut at their end to fit "
                f"{self._max_length} tokens"
            )
        return without_unknown_types(encoded, self.model.config)

    def evaluate(self, adapted: bool) -> dict[str, float] | None:
        """Score; see `RunData.evaluate`.

        Returns:
            {"loss": mean over the texts, nats; "accuracy": 0 to 100; …}, or None.
        """
        total = 0.0
        chosen: list[int] = []
        with evaluating(self.model), torch.no_grad():
            for batch in self.batches():
                if self.should_stop():
                    return None
                labels = batch.pop("labels")
                logits = self.model(**batch).logits.float()
                total += cross_entropy(logits, labels, reduction="sum").item()
                chosen += logits.argmax(-1).tolist()
        names = {number: label for label, number in self._numbers.items()}
        answers = [names[number] for number in chosen]
        self.keep_answers(answers, adapted)
        return {"loss": total / len(chosen), **self._task.score(answers, self.held_out)}


def step_loss(output: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """Return one pass's share of the step's mean cross-entropy, in float32.

    A …ForSequenceClassification takes the mean of the pass, so that passes of different sizes
    would weigh the same, and some of them are summed over the step by transformers' Trainer.

    Args:
        output: the model's, with logits of shape (batch, classes).
        labels: int64, (batch,).
        num_items_in_batch: texts of all passes of the step.
    """
    return cross_entropy(output.logits.float(), labels, reduction="sum") / num_items_in_batch


def _room(model: Any, tokenizer: Any) -> int:
    """Return how many tokens model and tokenizer take."""
    return min(positions(model), tokenizer.model_max_length)
