"""Which example is seen when: a pure function of the seed, the lengths and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch import Generator
from torch.utils.data import Sampler

_STEPS_SORTED = 50  # together, at most; fewer where that would be more than a quarter of the data


class StepSampler(Sampler[int]):
    """The examples of a run's steps in their order, from any step on.

    The data are gone through round by round, each round in an order of its own. A batch that the
    end of a round falls into goes on with the next round: every batch is full, and where it begins
    hangs on its number alone.

    With lengths a step's examples are of like length, as by transformers' `LengthGroupedSampler`
    (`train_sampling_strategy="group_by_length"`): the examples of 50 random steps, or of a quarter
    of the data, are sorted by length and cut into steps. The longest whole step comes first, so
    that what does not fit fails at once. The others come in random order, where transformers' go
    from long to short within every 50, which shows in the losses.

    Args:
        examples: how many there are, at least 1.
        per_step: examples an optimizer step, all its forward passes together.
        steps: optimizer steps of the whole run.
        seed: of the orders.
        done: optimizer steps that were taken before; they are skipped.
        lengths: of each example, whatever sorts; None: a step's examples are random.
        by_epoch: every round ends with a step of what is left, as HF Trainer's epochs do.
        whole: such a step is filled up from its round's beginning to a multiple of so many, as
            accelerate does it: processes take equally many passes.
    """

    def __init__(
        self,
        examples: int,
        per_step: int,
        steps: int,
        seed: int,
        done: int = 0,
        lengths: Sequence[Any] | None = None,
        *,
        by_epoch: bool = False,
        whole: int = 1,
    ) -> None:
        self._examples = examples
        self._per_step = per_step
        self._start = done * per_step
        self._end = steps * per_step
        self._seed = seed
        self._lengths = lengths
        self._by_epoch = by_epoch
        self._whole = whole

    def steps(self) -> Iterator[list[int]]:
        """Yield the examples of each step."""
        size = self._per_step
        if not self._by_epoch:
            order = iter(self)
            while rows := list(islice(order, size)):
                yield rows
            return
        each = math.ceil(self._examples / size)
        known, order_of_round = -1, [0]
        for step in range(self._start // size, self._end // size):
            number, place = divmod(step, each)
            if number != known:
                known, order_of_round = number, self._round(number)
            rows = order_of_round[place * size : (place + 1) * size]
            yield rows + list(islice(cycle(order_of_round), -len(rows) % self._whole))

    def __len__(self) -> int:
        return self._end - self._start

    def __iter__(self) -> Iterator[int]:
        position = self._start
        while position < self._end:
            number, offset = divmod(position, self._examples)
            yield from self._round(number)[offset : offset + self._end - position]
            position += self._examples - offset

    def _round(self, number: int) -> list[int]:
        # Not the seed plus the number: two seeds next to each other would share their rounds.
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + number) % 2**63)
        order: list[int] = torch.randperm(self._examples, generator=generator).tolist()
        if self._lengths is None:
            return order
        if self._by_epoch:
            return self._grouped(order, self._lengths, generator)
        first = -number * self._examples % self._per_step  # they fill the last round's last step
        return order[:first] + self._grouped(order[first:], self._lengths, generator)

    def _grouped(self, order: list[int], lengths: Sequence[Any], generator: Generator) -> list[int]:
        size = self._per_step
        together = size * max(1, min(self._examples // (size * 4), _STEPS_SORTED))
        steps: list[list[int]] = []
        for start in range(0, len(order), together):
            alike = sorted(order[start : start + together], key=lengths.__getitem__, reverse=True)
            steps += (alike[i : i + size] for i in range(0, len(alike), size))
        rest = steps.pop() if steps and len(steps[-1]) < size else []
        steps = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        if steps:
            longest = max(range(len(steps)), key=lambda i: lengths[steps[i][0]])
            steps[0], steps[longest] = steps[longest], steps[0]
        return [*(row for step in steps for row in step), *rest]
