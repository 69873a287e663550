"""A run's data: what it learns from, and what the held-out part says before and after."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lora_lab.configs import TrainingConfig
from lora_lab.runs.samples import Sample
from lora_lab.tasks import Example, Task
from lora_lab.tasks.encoding import IGNORED, Encoded, collate, encode_all, pad_id
from lora_lab.tasks.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_lab.models import LoadedModel

_SAMPLES = 4  # answers kept to be read
_LONGER = 1.5  # an answer may be so many times as long as the longest right one


class RunData:
    """A task, cut to what a run needs and encoded for its model.

    Args:
        should_stop: asked between batches and tokens of an evaluation; it may wait (a pause).
        notes: gets a line where prompts had to be cut.
    """

    def __init__(
        self,
        lm: LoadedModel,
        task: Task,
        training: TrainingConfig,
        should_stop: Callable[[], bool],
        notes: list[str],
    ) -> None:
        self._model: Any = lm.model
        self._tokenizer = cast("PreTrainedTokenizerBase", lm.tokenizer)
        self._task = task
        self._training = training
        self._should_stop = should_stop
        self._notes = notes
        # The first ones, so that runs are scored on the same.
        self.held_out: list[Example] = list(task.validation[: training.eval_examples])
        self.samples = tuple(
            Sample(task.prompt_text(e.prompt), tuple(e.references))
            for e in self.held_out[:_SAMPLES]
        )

    @property
    def collate(self) -> Callable[[list[Encoded]], dict[str, Tensor]]:
        """What pads examples to a batch."""
        return functools.partial(collate, pad_id=pad_id(self._tokenizer))

    def training_examples(self) -> list[Encoded]:
        """Encode the training examples that the steps will reach, drawn without replacement."""
        training, rows = self._training, self._task.train
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed))
        reached = order[: training.max_steps * batch].tolist()
        return self._encode([rows[i] for i in reached], "training")

    def evaluate(self, adapted: bool) -> dict[str, float] | None:
        """Score the held-out examples with the model as it stands, and keep some answers.

        Returns:
            {"loss": mean over their completion tokens, nats; "bleu": 0 to 100}, or None where
            `should_stop` ended it.
        """
        loss = self._loss()
        answers = self._answers() if loss is not None else []
        if loss is None or len(answers) < len(self.held_out):
            return None
        self.samples = tuple(
            replace(sample, adapted=answer) if adapted else replace(sample, base=answer)
            for sample, answer in zip(self.samples, answers, strict=False)
        )
        return {"loss": loss, **self._task.score(answers, self.held_out)}

    def _loss(self) -> float | None:
        total, tokens = 0.0, 0
        was_training = [module for module in self._model.modules() if module.training]
        self._model.eval()
        try:
            for batch in self._batches():
                if self._should_stop():
                    return None
                # The model's own loss is the mean over this batch's labels, shifted by one.
                count = int((batch["labels"][:, 1:] != IGNORED).sum())
                with torch.no_grad():
                    total += self._model(**batch).loss.item() * count
                tokens += count
        finally:
            for module in was_training:
                module.training = True
        return total / tokens

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        encoded = self._encode(self.held_out, "held-out")
        size = self._training.per_device_train_batch_size
        for start in range(0, len(encoded), size):
            batch = self.collate(encoded[start : start + size])
            yield {name: tensor.to(self._model.device) for name, tensor in batch.items()}

    def _answers(self) -> list[str]:
        lengths = [
            len(self._tokenizer(reference, add_special_tokens=False)["input_ids"])
            for example in self.held_out
            for reference in example.references
        ]
        return generate(
            self._model,
            self._tokenizer,
            [self._task.prompt_text(example.prompt) for example in self.held_out],
            max_new_tokens=min(math.ceil(_LONGER * max(lengths)) + 1, self._training.max_length),
            should_stop=self._should_stop,
        )

    def _encode(self, examples: list[Example], part: str) -> list[Encoded]:
        encoded, cut = encode_all(examples, self._task, self._tokenizer, self._training.max_length)
        if cut:
            note = (
                f"{cut} of {len(examples)} {part} prompts were cut at their start to fit "
                f"max_length={self._training.max_length}"
            )
            if note not in self._notes:
                self._notes.append(note)
        return encoded
