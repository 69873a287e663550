"""The data of a run of an encoder-decoder model: prompts are read, completions written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from lora_lab.tasks.base import Example, Task
from lora_lab.tasks.encoding import IGNORED, pad_id
from lora_lab.tasks.generation import positions
from lora_lab.tasks.seq2seq_encoding import collate_pairs, decoder_inputs, encode_pairs
from lora_lab.training.config import TrainingConfig
from lora_lab.training.data import GenerationData

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


class Seq2SeqData(GenerationData):
    """Prompts for the encoder with completions for the decoder; `max_length` is each side's."""

    def __init__(
        self,
        lm: LoadedModel,
        task: Task,
        training: TrainingConfig,
        notes: list[str],
        learned_tokens: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(lm, task, training, notes, learned_tokens, should_stop)
        self._max_length = min(self._max_length, positions(self.model) - self._learned_tokens)

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        """What pads examples to a batch, the decoder's input with it."""
        shift = functools.partial(decoder_inputs, self.model)
        return functools.partial(collate_pairs, pad_id=pad_id(self.tokenizer), shift=shift)

    @property
    def loss(self) -> Callable[..., Tensor]:
        """Cross-entropy, the mean over all completion tokens of an optimizer step."""
        return step_loss

    def longest_written(self, examples: Sequence[Mapping[str, Any]]) -> int:
        """Return the tokens of the longest completion; `longest` is that of the prompts."""
        return max(len(example["labels"]) for example in examples)

    def _encode_all(self, examples: Sequence[Example]) -> tuple[Sequence[Mapping[str, Any]], int]:
        return encode_pairs(examples, self._task, self.tokenizer, self._max_length)

    def _summed_loss(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        labels = batch.pop("labels")
        loss = step_loss(self.model(**batch, use_cache=False), labels, 1)
        return loss.item(), int((labels != IGNORED).sum())


def step_loss(output: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """Return one pass's share of the step's mean cross-entropy, in float32.

    A …ForConditionalGeneration takes the mean of the pass whatever transformers' Trainer tells it
    of the step, and the Trainer then adds these means up.

    Args:
        output: the model's, with logits of shape (batch, length, vocabulary).
        labels: int64, (batch, length), not shifted; -100 is left out.
        num_items_in_batch: labels of all passes of the step.
    """
    logits = output.logits.flatten(0, 1).float()
    total = cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / num_items_in_batch
