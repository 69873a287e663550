"""When a training has gone wrong for good: a loss that climbs and stays up."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from lora_lab.errors import RunError

FIRST_STEPS = 5
RISE = 10.0  # nats per token: a text's likelihood fell e¹⁰-fold a token, which no noise does
PATIENCE = 20  # steps in a row


class DivergingError(RunError):
    """The loss went far above where it began, and stayed there."""


class Divergence:
    """Watches the losses of a run.

    A loss is high when it is `rise`, 10 nats by default, above the median of the first 5 steps'.
    A training has diverged when 20 losses in a row were high. That is far from anything that a
    training comes back from: a model that guesses blindly among 50,000 tokens has a loss of 10.8.

    Args:
        losses: of the steps taken before, in their order.
        rise: see `Family.rise`.
    """

    def __init__(self, losses: Iterable[float] = (), rise: float | None = None) -> None:
        self._rise = RISE if rise is None else rise
        self._first: list[float] = []
        self.high_in_a_row = 0
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """Take note of the next step's loss."""
        if len(self._first) < FIRST_STEPS:
            self._first.append(loss)
            return
        self.high_in_a_row = self.high_in_a_row + 1 if loss > self.limit else 0

    @property
    def limit(self) -> float:
        """Above this a loss is high."""
        return statistics.median(self._first) + self._rise

    def check(self, step: int, loss: float) -> None:
        """Raise `DivergingError` if the training has diverged."""
        if self.high_in_a_row >= PATIENCE:
            raise DivergingError(
                f"the loss diverged: it was {statistics.median(self._first):.2f} at first and is "
                f"{loss:.2f} at step {step}, {PATIENCE} steps in a row above {self.limit:.2f}"
            )
