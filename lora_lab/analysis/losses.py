"""A model's loss on its task, and on text that the base model wrote: what it learned and forgot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_lab._util.devices import on_device_of
from lora_lab._util.transformers_private import own_tokenizer
from lora_lab.anatomy.model_config import max_positions
from lora_lab.errors import TaskError
from lora_lab.methods.attached import bare
from lora_lab.tasks.base import Task
from lora_lab.tasks.encoding import IGNORED, Encoded, collate, need_tokenizer, pad_id
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.generation import evaluating
from lora_lab.tasks.own_loss import summed_loss
from lora_lab.tasks.own_text import write_texts, writes_text
from lora_lab.tasks.prompts import Example, GenerationTask

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

_BATCH = 8
_LONGEST = 512  # tokens of an example or text; what is longer is cut
_TEXTS, _TEXT_TOKENS = 16, 64


class Losses:
    """Two fixed sets of text for one model, on which its loss is measured again and again.

    Making one writes the base model's text, unless it is given, and measures the base's own loss.

    Args:
        lm: the model.
        examples: prompts with completions, each prompt on a line of its own; or a task: its
            validation examples, framed as it does.
        base_texts: as `intruder_curve` has it.
        should_stop: asked before every batch and every token written.

    Attributes:
        base_reference: the base model's loss on its text, nats per token; NaN until `ready`.
        ready: whether all was made; False after a stop.
        should_stop: asked before every batch and every token written; may be replaced.

    Raises:
        TaskError: a model that writes no text, or no token to measure on.
    """

    def __init__(
        self,
        lm: LoadedModel,
        examples: Sequence[Example] | Task,
        base_texts: Sequence[str] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._model: Any = lm.model
        self._tokenizer = own_tokenizer(need_tokenizer(lm.tokenizer))
        self.should_stop = should_stop
        if not writes_text(self._model):
            raise TaskError(
                f"{type(self._model).__name__} does not write text from left to right; take a "
                "causal language model, such as smollm2-135m"
            )
        self._longest = min(max_positions(self._model) or _LONGEST, _LONGEST)
        task = examples
        if not isinstance(task, Task):
            task = GenerationTask("held out", synthetic=False, train=(), validation=task)
        encoded, self._cut = family_of(task, lm)(lm, task, self._longest).encode(task.validation)
        self._task = [Encoded(input_ids=e["input_ids"], labels=e["labels"], cut=0) for e in encoded]
        _need_tokens(self._task, "examples")
        self._wrote = base_texts is None
        self._base = [] if base_texts is None else self._read(base_texts)
        self.base_reference = math.nan
        self._measure_base()
        self.ready = math.isfinite(self.base_reference)

    def of_task(self) -> float | None:
        """Return the loss on the examples' completions, nats per token; None after a stop."""
        return self._mean(self._task)

    def of_base(self) -> float | None:
        """Return the loss on the base model's text, nats per token; None after a stop."""
        return self._mean(self._base)

    def describe(self) -> str:
        """Return what was measured, in one line."""
        cut = f", {self._cut} prompts cut" if self._cut else ""
        text = "that the base model wrote" if self._wrote else "given"
        return (
            f"task loss over {len(self._task)} examples ({_tokens(self._task):,} completion tokens"
            f"{cut}); base loss over {len(self._base)} texts {text} "
            f"({_tokens(self._base):,} tokens)"
        )

    def _measure_base(self) -> None:
        with bare(self._model):
            if self._wrote:
                tokens = min(_TEXT_TOKENS, self._longest - 1)
                self._base = write_texts(
                    self._model, self._tokenizer, _TEXTS, tokens, self.should_stop
                )
            loss = self._mean(self._base) if self._base else None
        if loss is not None:
            self.base_reference = loss

    def _read(self, texts: Sequence[str]) -> list[Encoded]:
        ids = [list(self._tokenizer(text)["input_ids"])[: self._longest] for text in texts]
        rows: list[Encoded] = [{"input_ids": row, "labels": row, "cut": 0} for row in ids]
        _need_tokens(rows, "base_texts")
        return rows

    def _mean(self, rows: list[Encoded]) -> float | None:
        total, tokens = 0.0, 0
        with evaluating(self._model), torch.no_grad():
            for first in range(0, len(rows), _BATCH):
                if self.should_stop():
                    return None
                batch = collate(rows[first : first + _BATCH], pad_id(self._tokenizer))
                if (batch["labels"][:, 1:] != IGNORED).any():
                    loss, count = summed_loss(self._model, on_device_of(self._model, batch))
                    total, tokens = total + loss, tokens + count
        return total / tokens


def _tokens(rows: list[Encoded]) -> int:
    return sum(label != IGNORED for row in rows for label in row["labels"][1:])


def _need_tokens(rows: list[Encoded], what: str) -> None:
    if not _tokens(rows):
        raise TaskError(f"{what} hold no token whose loss could be measured; give some text")
