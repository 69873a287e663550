"""Prompt → completion by an encoder-decoder model: prompts are read, completions written."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lora_lab.errors import ConfigError, as_cause
from lora_lab.tasks.encoding import IGNORED, pad_id
from lora_lab.tasks.families.base import Lengths, Measured, register_family
from lora_lab.tasks.families.causal import Causal
from lora_lab.tasks.generation import positions
from lora_lab.tasks.prompts import Example
from lora_lab.tasks.seq2seq_encoding import (
    EncodedPair,
    collate_pairs,
    cut_pair,
    decoder_inputs,
    encode_pairs,
    frame,
)

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


def step_loss(
    output: Any, labels: Tensor, num_items_in_batch: Any, label_smoothing: float = 0.0
) -> Tensor:
    """Return one pass's share of the step's mean cross-entropy, in float32.

    A …ForConditionalGeneration takes the mean of the pass whatever transformers' Trainer tells it
    of the step, and the Trainer then adds these means up.

    Args:
        output: the model's, with logits of shape (batch, length, vocabulary).
        labels: int64, (batch, length), not shifted; -100 is left out.
        num_items_in_batch: labels of all passes of the step.
        label_smoothing: ε, as torch's cross_entropy takes it.
    """
    logits = output.logits.flatten(0, 1).float()
    total = cross_entropy(
        logits,
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / num_items_in_batch


@register_family
class Seq2Seq(Causal):
    """An encoder-decoder model, and prompts with completions; `max_length` is each side's."""

    loss = staticmethod(step_loss)

    @classmethod
    def suits(cls, lm: LoadedModel) -> bool:
        """Return whether the model has an encoder and a decoder."""
        return bool(getattr(lm.model.config, "is_encoder_decoder", False))

    @classmethod
    def check(cls, lm: LoadedModel, task: Any) -> None:
        """Refuse a model that writes no text, or does not know what its decoder starts with."""
        super().check(lm, task)
        # A text of one token that is no padding: mBART's way looks for a text's last one.
        padding = getattr(lm.model.config, "pad_token_id", None)
        try:
            decoder_inputs(lm.model, torch.tensor([[int(padding == 0)]]))
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{lm.card.name} does not know what its decoder starts with; set "
                "model.config.decoder_start_token_id and model.config.pad_token_id"
            ) from as_cause(error)

    @classmethod
    def room(cls, lm: LoadedModel) -> int:
        """Return how many positions each side has."""
        return positions(lm.model)

    def encode(self, examples: Sequence[Example]) -> tuple[Sequence[Any], int]:
        """Return prompts and completions as tokens; prompts are cut at their start."""
        return encode_pairs(examples, self.task, self.tokenizer, self.max_length)

    def cut(self, examples: Sequence[Any], whole: Sequence[Any]) -> list[Any]:  # noqa: ARG002
        """Return whole examples cut, without tokenizing them again."""
        around = frame(self.tokenizer, "text")
        return [cut_pair(item, *around, self.max_length) for item in whole]

    def collate(self, batch: Sequence[EncodedPair]) -> dict[str, Tensor]:
        """Pad to a batch, the decoder's input with it; see `collate_pairs`."""
        shift = functools.partial(decoder_inputs, self.model)
        return collate_pairs(batch, pad_id(self.tokenizer), shift)

    def longest(self, encoded: Sequence[Mapping[str, Any]]) -> Lengths:
        """Return the longest prompt and the longest completion."""
        read = max(len(item["input_ids"]) for item in encoded)
        return Lengths(read, max(len(item["labels"]) for item in encoded))

    def short_of_room(self, examples: Sequence[Any]) -> str:  # noqa: ARG002
        """Return "": prompt and answer have positions of their own."""
        return ""

    def measure(self, batch: dict[str, Tensor]) -> Measured:
        """Return the sum over the batch's completion tokens, nats, and how many they are."""
        labels = batch.pop("labels")
        output = self.model(**batch, use_cache=False)
        logits = output.logits.transpose(1, 2).float()
        losses = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        sums, counts = losses.cpu().double().sum(1), (labels != IGNORED).sum(1)
        each = list(zip(sums.tolist(), counts.tolist(), strict=True))
        return Measured(step_loss(output, labels, 1).item(), int(counts.sum()), each=each)
