"""A run's data: what it learns from, and what the held-out part says before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_lab.runs.samples import Sample
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.api import family_of
from lora_lab.training import processes

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

SAMPLES = 4  # answers kept to be read


class RunData:
    """A task, cut to what a run needs and encoded for its model.

    Args:
        lm: the model, adapted or not, with its tokenizer.
        task: what it learns.
        training: how it is trained.
        notes: get a line where texts had to be cut.
        learned_tokens: that a method puts before every sequence.
        should_stop: asked between batches and tokens of an evaluation; it may wait (a pause).

    Attributes:
        family: encodes and measures.
        held_out: what the run is scored on: the first ones, so that runs are scored on the same.
        samples: a few of them, with the answers known so far.
        scoring: how their answers are scored, metric by metric; see `Task.scoring`.
    """

    def __init__(
        self,
        lm: LoadedModel,
        task: Task,
        training: TrainingConfig,
        notes: list[str],
        learned_tokens: int = 0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        family = family_of(task, lm)
        length = min(training.max_length, family.room(lm) - learned_tokens)
        self.family = family(lm, task, length)
        self.held_out = list(task.validation[: training.eval_examples])
        self.samples = tuple(Sample(*self.family.sample(e)) for e in self.held_out[:SAMPLES])
        self.scoring = task.scoring(self.held_out)
        self._note_scoring(task, notes)
        self._rows = task.train
        self._training = training
        self._notes = notes
        self._should_stop = should_stop

    def _note_scoring(self, task: Task, notes: list[str]) -> None:
        labels = {metric.name: metric.label for metric in task.metrics}
        for name, told in self.scoring.items():
            line = f"{labels[name]} is {told}"
            if told.startswith("left out") and line not in notes:
                notes.append(line)

    def training_examples(self) -> Sequence[Mapping[str, Any]]:
        """Encode the training examples that the steps will reach, drawn without replacement."""
        training = self._training
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
        batch *= processes.count()
        return self._encode(self._reached(training.max_steps * batch), "training")

    def _reached(self, count: int) -> list[Any]:
        generator = torch.Generator().manual_seed(self._training.seed)
        order = torch.randperm(len(self._rows), generator=generator)
        return [self._rows[i] for i in order[:count].tolist()]

    def first_batches(self, count: int) -> list[dict[str, Tensor]]:
        """Return the first of the training examples in batches, on the model's device."""
        size = self._training.per_device_train_batch_size
        encoded = self._encode(self._reached(count * size), "training")
        return [*self._collated(encoded)]

    def evaluate(self, adapted: bool) -> dict[str, float] | None:
        """Score the held-out examples with the model as it stands, and keep some answers.

        Returns:
            {"loss": mean, and the task's metrics}, or None where `should_stop` ended it.
        """
        found = self.family.evaluate(self.held_out, self._batches(), self._should_stop)
        if found is None:
            return None
        answers = map(self.family.shown, found.answers)
        self.samples = tuple(
            replace(sample, adapted=answer) if adapted else replace(sample, base=answer)
            for sample, answer in zip(self.samples, answers, strict=False)
        )
        return found.scores

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the held-out examples in batches, on the model's device."""
        yield from self._collated(self._encode(self.held_out, "held-out"))

    def _collated(self, encoded: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Tensor]]:
        size = self._training.per_device_train_batch_size
        for start in range(0, len(encoded), size):
            batch = self.family.collate(encoded[start : start + size])
            yield {name: tensor.to(self.family.model.device) for name, tensor in batch.items()}

    def _encode(self, examples: Sequence[Any], part: str) -> Sequence[Mapping[str, Any]]:
        """Encode examples of a part; a line in the notes tells, once, of those that were cut."""
        encoded, cut = self.family.encode(examples)
        line = self.family.cut_note.format(
            cut=cut, count=len(examples), part=part, length=self.family.max_length
        )
        if cut and line not in self._notes:
            self._notes.append(line)
        return encoded
