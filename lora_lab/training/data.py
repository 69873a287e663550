"""A run's data: what it learns from, and what the held-out part says before and after."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lora_lab.runs.samples import Sample
from lora_lab.tasks.base import Example, Task
from lora_lab.tasks.encoding import IGNORED, collate, encode_all, pad_id
from lora_lab.tasks.generation import evaluating, generate
from lora_lab.training import processes
from lora_lab.training.config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lora_lab.models.load import LoadedModel

SAMPLES = 4  # answers kept to be read
_LONGER = 1.5  # an answer may be so many times as long as the longest right one


class RunData(ABC):
    """A task, cut to what a run needs and encoded for its model.

    Args:
        lm: the model, adapted or not, with its tokenizer.
        task: of the kind that the class is for.
        training: how it is trained.
        notes: get a line where texts had to be cut.
        learned_tokens: that a method puts before every sequence.
        should_stop: asked between batches and tokens of an evaluation; it may wait (a pause).

    Attributes:
        held_out: what the run is scored on.
        samples: a few of them, with the answers known so far.
    """

    held_out: Sequence[Any]
    samples: tuple[Sample, ...]

    def __init__(
        self,
        lm: LoadedModel,
        task: Any,
        training: TrainingConfig,
        notes: list[str],
        learned_tokens: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model: Any = lm.model
        self.tokenizer = cast("PreTrainedTokenizerBase", lm.tokenizer)
        self.training = training
        self.should_stop = should_stop
        self._rows = task.train
        self._notes = notes
        self._learned_tokens = learned_tokens

    @property
    @abstractmethod
    def collate(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        """What pads examples to a batch."""

    @property
    def loss(self) -> Callable[..., Tensor] | None:
        """The training loss as `Fit` takes it; None: the model's own."""
        return None

    @abstractmethod
    def encode(self, examples: Sequence[Any], part: str) -> Sequence[Mapping[str, Any]]:
        """Encode examples of a part ("training", "held-out")."""

    @abstractmethod
    def evaluate(self, adapted: bool) -> dict[str, float] | None:
        """Score the held-out examples with the model as it stands, and keep some answers.

        Returns:
            {"loss": mean in nats, and the task's own scores}, or None where `should_stop` ended it.
        """

    def training_examples(self) -> Sequence[Mapping[str, Any]]:
        """Encode the training examples that the steps will reach, drawn without replacement."""
        training, rows = self.training, self._rows
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
        batch *= processes.count()
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(training.seed))
        reached = order[: training.max_steps * batch].tolist()
        return self.encode([rows[i] for i in reached], "training")

    def longest(self, examples: Sequence[Mapping[str, Any]]) -> int:
        """Return the tokens of the longest encoded example, as a forecast wants them."""
        return max(len(example["input_ids"]) for example in examples)

    def longest_written(self, examples: Sequence[Mapping[str, Any]]) -> int | None:  # noqa: ARG002
        """Return the tokens of the longest completion, where it is a sequence of its own."""
        return None

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the held-out examples in batches, on the model's device."""
        encoded = self.encode(self.held_out, "held-out")
        size = self.training.per_device_train_batch_size
        for start in range(0, len(encoded), size):
            batch = self.collate(list(encoded[start : start + size]))
            yield {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    def keep_answers(self, answers: Sequence[str], adapted: bool) -> None:
        """Put the first answers into the samples."""
        self.samples = tuple(
            replace(sample, adapted=answer) if adapted else replace(sample, base=answer)
            for sample, answer in zip(self.samples, answers, strict=False)
        )

    def note(self, line: str) -> None:
        """Add a line to the run's notes, once."""
        if line not in self._notes:
            self._notes.append(line)


class GenerationData(RunData):
    """Prompts with completions; held-out ones are answered and scored."""

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
        self._task = task
        self._max_length = training.max_length
        # The first ones, so that runs are scored on the same.
        self.held_out: list[Example] = list(task.validation[: self.training.eval_examples])
        self.samples = tuple(
            Sample(task.prompt_text(e.prompt), tuple(e.references)) for e in self.held_out[:SAMPLES]
        )

    @property
    def collate(self) -> Callable[[list[Any]], dict[str, Tensor]]:
        """What pads examples to a batch."""
        return functools.partial(collate, pad_id=pad_id(self.tokenizer))

    def evaluate(self, adapted: bool) -> dict[str, float] | None:
        """Score; see `RunData.evaluate`.

        Returns:
            {"loss": mean over the completion tokens, nats; "bleu": 0 to 100}, or None.
        """
        loss = self._loss()
        answers = self._answers() if loss is not None else []
        if loss is None or len(answers) < len(self.held_out):
            return None
        self.keep_answers(answers, adapted)
        return {"loss": loss, **self._task.score(answers, self.held_out)}

    def encode(self, examples: Sequence[Example], part: str) -> Sequence[Mapping[str, Any]]:
        """Encode; a line in the notes tells of prompts that were cut."""
        encoded, cut = self._encode_all(examples)
        if cut:
            self.note(
                f"{cut} of {len(examples)} {part} prompts were cut at their start to fit "
                f"max_length={self._max_length}"
            )
        return encoded

    def _encode_all(self, examples: Sequence[Example]) -> tuple[Sequence[Mapping[str, Any]], int]:
        return encode_all(examples, self._task, self.tokenizer, self._max_length)

    def _loss(self) -> float | None:
        total, tokens = 0.0, 0
        with evaluating(self.model), torch.no_grad():
            for batch in self.batches():
                if self.should_stop():
                    return None
                loss, count = self._summed_loss(batch)
                total += loss
                tokens += count
        return total / tokens

    def _summed_loss(self, batch: dict[str, Tensor]) -> tuple[float, int]:
        """Return the sum over a batch's completion tokens, and how many they are."""
        # The model's own loss is the mean over this batch's labels, shifted by one.
        count = int((batch["labels"][:, 1:] != IGNORED).sum())
        return self.model(**batch).loss.item() * count, count

    def _answers(self) -> list[str]:
        lengths = [
            len(self.tokenizer(reference, add_special_tokens=False)["input_ids"])
            for example in self.held_out
            for reference in example.references
        ]
        return generate(
            self.model,
            self.tokenizer,
            [self._task.prompt_text(example.prompt) for example in self.held_out],
            max_new_tokens=min(math.ceil(_LONGER * max(lengths)) + 1, self._max_length),
            should_stop=self.should_stop,
        )
