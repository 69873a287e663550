"""What families of texts have in common: a head reads the text, or the pair, in its frame."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_lab._util.devices import on_device_of
from lora_lab.anatomy.heads import head_modules, is_classifier
from lora_lab.errors import ConfigError
from lora_lab.tasks.base import shown
from lora_lab.tasks.encoding import no_tokenizer
from lora_lab.tasks.families.base import Family
from lora_lab.tasks.generation import evaluating, positions
from lora_lab.tasks.text_encoding import (
    EncodedText,
    collate_texts,
    encode_texts,
    text_pad_id,
    without_unknown_types,
)

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


class TextFamily(Family):
    """A model with a head, and texts or pairs of them; a text's answer is read off the logits."""

    cut_note = "{cut} of {count} {part} texts were cut at their end to fit {length} tokens"

    @classmethod
    def room(cls, lm: LoadedModel) -> int:
        """Return how many tokens model and tokenizer take."""
        return min(positions(lm.model), lm.tokenizer.model_max_length if lm.tokenizer else 0)

    @classmethod
    def check_head(cls, lm: LoadedModel, kind: str, needs: str, outputs: int, load: str) -> None:
        """Refuse a model without a tokenizer, a padding token, or a head of so many outputs.

        Args:
            lm: the model.
            kind: what the task is, for messages: "mini-nli is text → one of 3 classes".
            needs: what its head has to be for: "mini-nli has 3 (contradiction, …)".
            outputs: of the head.
            load: how such a model is loaded.
        """
        model, name = lm.model, lm.card.name
        if not is_classifier(model) or not head_modules(model):
            raise ConfigError(
                f"{name} ({type(model).__name__}) has no classification head, and {kind}; load it "
                f"with {load}"
            )
        if lm.tokenizer is None:
            raise ConfigError(no_tokenizer(name))
        if model.config.num_labels != outputs:
            own = model.config.num_labels
            of = "one number" if own == 1 else f"{own} classes"
            raise ConfigError(f"{name} has a head for {of} and {needs}; load it with {load}")
        if getattr(model.config, "pad_token_id", None) is None:
            raise ConfigError(
                f"{name} knows no padding, so that it cannot tell where a text ends; set "
                "model.config.pad_token_id to the tokenizer's pad_token_id or eos_token_id"
            )

    @abstractmethod
    def target(self, example: Any) -> int | float:
        """Return what the head learns of an example."""

    def encode(self, examples: Sequence[Any]) -> tuple[Sequence[Any], int]:
        """Return texts as tokens in the tokenizer's frame; they are cut at their end."""
        return self._encode(examples, [self.target(example) for example in examples])

    def _encode(self, examples: Sequence[Any], targets: Sequence[Any]) -> tuple[Sequence[Any], int]:
        encoded, cut = encode_texts(examples, targets, self.tokenizer, self.max_length)
        return without_unknown_types(encoded, self.model.config), cut

    def collate(self, batch: Sequence[EncodedText]) -> dict[str, Tensor]:
        """Pad to a batch; see `collate_texts`."""
        return collate_texts(batch, text_pad_id(self.model.config, self.tokenizer))

    def typed(self, text: str) -> Any:
        """Return an example of what somebody typed: of a task of pairs, its second line is one."""
        first = self.task.train[0]
        if first.pair is None:
            return dataclasses.replace(first, text=text)
        text, _, pair = text.partition("\n")
        return dataclasses.replace(first, text=text, pair=pair.strip())

    def logits(self, example: Any) -> Tensor:
        """Return the head's outputs for one text, (outputs,) float32, with the active adapter.

        Raises:
            TaskError: the text has no token.
        """
        encoded, _ = self._encode([example], [0])
        batch = self.collate(list(encoded))
        batch.pop("labels")
        with evaluating(self.model), torch.no_grad():
            return self.model(**on_device_of(self.model, batch)).logits[0].float()

    def sample(self, example: Any) -> tuple[str, tuple[str, ...]]:
        """Return the text, a pair on two lines, and its answer."""
        return shown(example), (self.right(example),)

    @abstractmethod
    def right(self, example: Any) -> str:
        """Return an example's answer as people read it."""
