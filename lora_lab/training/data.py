"""A run's data: what it learns from, and what the held-out part says before and after."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora_lab._util.devices import on_device_of
from lora_lab.anatomy.model_config import max_positions, position_limit
from lora_lab.errors import TaskError
from lora_lab.runs.samples import Sample
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import NO_LIMIT, Family, Lengths
from lora_lab.tasks.generation import BATCH
from lora_lab.tasks.intervals import Interval
from lora_lab.tasks.too_long import Tally, fit_examples
from lora_lab.training import processes

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

SAMPLES = 4  # answers kept to be read
# Examples that are looked at for what is too long, though no step reaches them: 50,000 take
# seconds.
_COUNTED = {"cut": 2000, "drop": 2000, "error": 50_000}


def run_family(
    lm: LoadedModel, task: Task, training: TrainingConfig, learned_tokens: int
) -> Family:
    """Return what encodes a run's examples, to as many tokens as there is room for."""
    kind = family_of(task, lm)
    return kind(lm, task, min(training.max_length, kind.room(lm) - learned_tokens))


def in_order_of(seed: int, rows: Sequence[Any]) -> list[Any]:
    """Return rows in the order in which a run of this seed draws them."""
    generator = torch.Generator().manual_seed(seed)
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


class RunData:
    """A task, cut to what a run needs and encoded for its model.

    Args:
        lm: the model, adapted or not, with its tokenizer.
        task: what it learns.
        training: how it is trained.
        notes: get a line on examples that are too long, one a part.
        learned_tokens: that a method puts before every sequence.
        should_stop: asked between batches and tokens of an evaluation; it may wait (a pause).

    Attributes:
        family: encodes and measures.
        held_out: what the run is scored on: the first ones that fit, so that runs are scored on
            the same.
        samples: a few of them, with the answers known so far.
        scoring: how their answers are scored, metric by metric; see `Task.scoring`.
        decoding: how the answers that are scored were written; {} before.
        answers: the latest evaluation's, as people read them, one a held-out example.
        intervals: the 95 % intervals of its scores.
        available: how many held-out examples there are, of which `held_out` are the first.
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
        limit = position_limit(lm.model)
        self._most = NO_LIMIT if limit is None else limit - learned_tokens
        self.family = run_family(lm, task, training, learned_tokens)
        self._rows = task.train
        self._training = training
        self._notes = notes
        self._should_stop = should_stop
        count = min(training.eval_examples, len(task.validation))
        if self.family.packs:
            self.held_out = list(task.validation[:count])
            self._encoded, _ = self.family.encode(self.held_out)
        else:
            self.held_out, self._encoded, _ = self._take(task.validation, count, "held-out")
        self.samples = tuple(Sample(*self.family.sample(e)) for e in self.held_out[:SAMPLES])
        self.scoring = task.scoring(self.held_out)
        self.decoding: dict[str, Any] = {}
        self.answers: tuple[str, ...] = ()
        self.intervals: dict[str, Interval] = {}
        self.available = len(task.validation)
        line = self.family.short_of_room(self.held_out) if self.held_out else ""
        if line and training.too_long == "error":
            raise TaskError(f"{line}, or set too_long='cut'")
        self._note(line)
        if count < training.eval_examples != TrainingConfig.eval_examples:
            there = f"there are {count} held-out examples, and all of them are"
            self._note(f"eval_examples={training.eval_examples}: {there} scored")
        labels = {metric.name: metric.label for metric in task.metrics}
        for name, told in self.scoring.items():
            if told.startswith(("left out", "not defined")):
                self._note(f"{labels[name]} is {told}")

    def training_examples(self) -> Sequence[Mapping[str, Any]]:
        """Encode the training examples that the steps will reach, drawn without replacement.

        Raises:
            TaskError: none of them fits.
        """
        training = self._training
        batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
        batch *= processes.count()
        whole = training.num_train_epochs is not None
        return self._reached(len(self._rows) if whole else training.max_steps * batch)

    def lengths(self, examples: Sequence[Mapping[str, Any]]) -> list[Lengths]:
        """Return how long each encoded example is."""
        return [self.family.longest([example]) for example in examples]

    def longest(self, examples: Sequence[Mapping[str, Any]]) -> tuple[int, int | None, int | None]:
        """Return the longest's two sides, and how many tokens of an example have a label."""
        return *self.family.longest(examples), self.family.most_labels(examples)

    def _reached(self, count: int) -> list[Mapping[str, Any]]:
        if self.family.packs:
            blocks = self._shuffled(self.family.encode(self._rows)[0])
            return blocks if self._training.num_train_epochs is not None else blocks[:count]
        rows = self._shuffled(self._rows)
        _, encoded, longest = self._take(
            rows, count, "training", look_at=_COUNTED[self._training.too_long]
        )
        self._note_training_length(longest)
        return encoded

    def _shuffled(self, rows: Sequence[Any]) -> list[Any]:
        return in_order_of(self._training.seed, rows)

    def first_batches(self, count: int) -> list[dict[str, Tensor]]:
        """Return the first of the training examples in batches, on the model's device."""
        size = self._training.per_device_train_batch_size
        return [*self._collated(self._reached(count * size))]

    def evaluate(
        self, adapted: bool, done: Callable[[float], None] = lambda _share: None
    ) -> dict[str, float] | None:
        """Score the held-out examples with the model as it stands, and keep some answers.

        Args:
            adapted: whose answers they are.
            done: told the share of the forward passes that is done, before each; answers that end
                early leave some of them out.

        Returns:
            {"loss": mean, and the task's metrics}, or None where `should_stop` ended it.
        """
        self.decoding = self.family.decoding(self.held_out)
        should_stop = self._told(done, self._passes())
        found = self.family.evaluate(self.held_out, self._batches(), should_stop)
        if found is None:
            return None
        self.answers = tuple(map(self.family.shown, found.answers))
        self.intervals = dict(found.intervals)
        self.samples = tuple(
            replace(sample, adapted=answer) if adapted else replace(sample, base=answer)
            for sample, answer in zip(self.samples, self.answers, strict=False)
        )
        return found.scores

    @property
    def one_answer(self) -> str | None:
        """The latest evaluation's answer, where it is the same to examples that differ in theirs.

        Two numbers that people read as the same are.
        """
        right = {self.family.sample(example)[1] for example in self.held_out}
        same = len(self.answers) > 1 and len(set(self.answers)) == 1 and len(right) > 1
        return self.answers[0] if same else None

    def evaluate_quickly(self, done: Callable[[float], None]) -> dict[str, float] | None:
        """Score the held-out examples as `evaluate` does, without answers written token by token.

        Args:
            done: told the share of the forward passes that is done, before each.
        """
        should_stop = self._told(done, self._passes(writes=False))
        found = self.family.evaluate_quickly(self.held_out, self._batches(), should_stop)
        return None if found is None else found.scores

    def _told(self, done: Callable[[float], None], passes: int) -> Callable[[], bool]:
        """Return what is asked before every forward pass of an evaluation."""
        asked = itertools.count()

        def should_stop() -> bool:
            done(min(next(asked) / passes, 1.0))
            return self._should_stop()

        return should_stop

    def _passes(self, writes: bool = True) -> int:
        """Return how many forward passes an evaluation takes at most."""
        size = self._training.per_device_train_batch_size
        writes = writes and self.family.writes
        written = self.decoding.get("max_new_tokens", 0) + 1 if writes else 0
        return (
            math.ceil(len(self._encoded) / size) + math.ceil(len(self.held_out) / BATCH) * written
        )

    def what_is_scored(self) -> str:
        """Return all that an evaluation's outcome hangs on beside the model, as text."""
        size = self._training.per_device_train_batch_size
        decoding = self.family.decoding(self.held_out)
        return repr((self.held_out, list(self._encoded), size, self.family.max_length, decoding))

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the held-out examples in batches, on the model's device."""
        yield from self._collated(self._encoded)

    def _collated(self, encoded: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Tensor]]:
        size = self._training.per_device_train_batch_size
        for start in range(0, len(encoded), size):
            batch = self.family.collate(encoded[start : start + size])
            yield on_device_of(self.family.model, batch)

    def _take(
        self, examples: Sequence[Any], count: int, part: str, look_at: int = 0
    ) -> tuple[list[Any], list[Mapping[str, Any]], int]:
        """Return the first examples that fit, them as tokens, and how long the longest is.

        What does not fit is noted, once.

        Args:
            examples: of a part of the task.
            count: how many are wanted.
            part: its name in the note.
            look_at: so many are looked at for the note, where there are more than are wanted.
        """
        taken: list[Any] = []
        encoded: list[Mapping[str, Any]] = []
        tally, too_long = Tally(), self._training.too_long
        for found in fit_examples(
            self.family, examples if count else (), too_long, max(count, look_at, 1)
        ):
            taken += found.examples[: count - len(taken)]
            encoded += found.encoded[: count - len(encoded)]
            tally += found.tally
            if len(taken) == count and tally.count >= look_at:
                break
        tally = replace(tally, of=len(examples))
        if tally.long and too_long == "error":
            raise TaskError(tally.refusal(self.family, part, self._most))
        line = tally.note(self.family, part, too_long, self._most)
        if part == "training" and tally.count == tally.left_out:
            raise TaskError(line)
        self._note(line)
        return taken, encoded, min(tally.longest, self.family.max_length)

    def _note_training_length(self, longest: int) -> None:
        """Note examples longer than those that the model was trained with: it fails at none."""
        trained = max_positions(self.family.model)
        if self._most == NO_LIMIT and trained is not None and longest > trained:
            self._note(
                f"the longest training example has {longest} tokens, and the model was trained "
                f"with {trained}"
            )

    def _note(self, line: str) -> None:
        if line and line not in self._notes:
            self._notes.append(line)
