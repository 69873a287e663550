"""Which example is seen when: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class StepSampler(Sampler[int]):
    """The examples of a run's steps in their order, from any step on.

    The data are gone through round by round, each round in an order of its own. A batch that the
    end of a round falls into goes on with the next round: every batch is full, and where it begins
    hangs on its number alone.

    Args:
        examples: how many there are, at least 1.
        per_step: examples an optimizer step, all its forward passes together.
        steps: optimizer steps of the whole run.
        seed: of the orders.
        done: optimizer steps that were taken before; they are skipped.
    """

    def __init__(self, examples: int, per_step: int, steps: int, seed: int, done: int = 0) -> None:
        self._examples = examples
        self._start = done * per_step
        self._end = steps * per_step
        self._seed = seed

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
        return torch.randperm(self._examples, generator=generator).tolist()
