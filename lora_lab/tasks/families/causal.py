"""Prompt → completion by a decoder: one sequence, the loss on the completion and its end only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lab.errors import ConfigError
from lora_lab.tasks.encoding import IGNORED, Encoded, collate, encode_all, pad_id
from lora_lab.tasks.families.base import Family, Measured, register_family
from lora_lab.tasks.generation import generate
from lora_lab.tasks.prompts import Example, GenerationTask

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

_LONGER = 1.5  # an answer may be so many times as long as the longest right one


@register_family
class Causal(Family):
    """A decoder, and prompts with completions."""

    kind = GenerationTask
    writes = True
    cut_note = "{cut} of {count} {part} prompts were cut at their start to fit max_length={length}"

    @classmethod
    def check(cls, lm: LoadedModel, task: GenerationTask) -> None:
        """Refuse a model that reads or writes no text."""
        model, name = lm.model, lm.card.name
        lacks = "generates" if not model.can_generate() or lm.tokenizer is None else ""
        lacks = lacks or ("reads" if model.main_input_name != "input_ids" else "")
        if lacks:
            raise ConfigError(
                f"{name} ({type(model).__name__}) {lacks} no text, and {task.name} is prompt → "
                "completion; use a language model such as smollm2-135m"
            )

    def encode(self, examples: Sequence[Example]) -> tuple[Sequence[Any], int]:
        """Return prompts with completions as tokens; prompts are cut at their start."""
        return encode_all(examples, self.task, self.tokenizer, self.max_length)

    def collate(self, batch: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad to a batch; see `encoding.collate`."""
        return collate(batch, pad_id(self.tokenizer))

    def measure(self, batch: dict[str, Tensor]) -> Measured:
        """Return the sum over the batch's completion tokens, nats, and how many they are."""
        # The model's own loss is the mean over this batch's labels, shifted by one.
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        return Measured(self.model(**batch).loss.item() * count, count)

    def write(self, examples: Sequence[Example], should_stop: Callable[[], bool]) -> list[str]:
        """Complete the prompts greedily."""
        lengths = [
            len(self.tokenizer(reference, add_special_tokens=False)["input_ids"])
            for example in examples
            for reference in example.references
        ]
        return generate(
            self.model,
            self.tokenizer,
            [self.task.prompt_text(example.prompt) for example in examples],
            max_new_tokens=min(math.ceil(_LONGER * max(lengths)) + 1, self.max_length),
            should_stop=should_stop,
        )

    def sample(self, example: Example) -> tuple[str, tuple[str, ...]]:
        """Return the prompt as the model sees it, and every right completion."""
        return self.task.prompt_text(example.prompt), tuple(example.references)

    def answer(self, text: str, max_new_tokens: int) -> str:
        """Complete a prompt greedily."""
        prompts = [self.task.prompt_text(text)]
        return generate(self.model, self.tokenizer, prompts, max_new_tokens=max_new_tokens)[0]
