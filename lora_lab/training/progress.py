"""How far a run is: its losses, thinned for drawing, and its pace."""

from __future__ import annotations

import time
from array import array
from collections import deque

import numpy as np

from lora_lab.runs.metrics import NO_LOSSES, LossCurve

MAX_POINTS = 500


class LossHistory:
    """All losses of a run, 16 bytes each, and at most `MAX_POINTS` of them to draw.

    Which points are drawn depends on the steps alone: every n-th from the first, with n doubled
    when there are too many, and always the latest. So points stay where they are.

    Args:
        before: those of the steps that were taken before.

    Attributes:
        values: the losses, one a step.
    """

    def __init__(self, before: LossCurve = NO_LOSSES) -> None:
        self._steps, self.values = array("q"), array("d")
        self._every = 1
        self._kept: list[tuple[int, float]] = []
        for step, loss in zip(before.steps.tolist(), before.losses.tolist(), strict=True):
            self.add(step, loss)

    def add(self, step: int, loss: float) -> None:
        """Add the loss of one optimizer step; steps count up from 1."""
        self._steps.append(step)
        self.values.append(loss)
        if (step - 1) % self._every:
            return
        self._kept.append((step, loss))
        if len(self._kept) >= MAX_POINTS:
            self._every *= 2
            self._kept = [p for p in self._kept if (p[0] - 1) % self._every == 0]

    def points(self) -> tuple[tuple[int, float], ...]:
        """Return what to draw."""
        latest = [*zip(self._steps[-1:], self.values[-1:], strict=True)]
        return tuple(self._kept if self._kept[-1:] == latest else self._kept + latest)

    def curve(self) -> LossCurve:
        """Return all of them."""
        return LossCurve(np.array(self._steps), np.array(self.values))


class Curves:
    """The losses of a run.

    Attributes:
        curve: of every step, as arrays; filled when the run is over.
        curve_before: of the steps before the checkpoint that it goes on from.
    """

    curve: LossCurve = NO_LOSSES
    curve_before: LossCurve = NO_LOSSES

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """(step, loss) of every step; filled when the run is over."""
        return self.curve.pairs()

    @property
    def steps_before(self) -> tuple[tuple[int, float], ...]:
        """(step, loss) of the steps before the checkpoint that it goes on from."""
        return self.curve_before.pairs()


class Pace:
    """A clock that is stopped while the run is paused, and the rate of the latest steps.

    Args:
        seconds: that are on the clock already.
    """

    WINDOW = 20  # steps

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._since: float | None = None
        self._marks: deque[float] = deque(maxlen=self.WINDOW + 1)

    def start(self) -> None:
        """Let the clock run."""
        if self._since is None:
            self._since = time.perf_counter()
        if not self._marks:
            self._marks.append(self.seconds)

    def stop(self) -> None:
        """Stop the clock."""
        self._seconds, self._since = self.seconds, None

    @property
    def is_running(self) -> bool:
        """Whether the clock runs."""
        return self._since is not None

    def step(self) -> None:
        """Mark the end of an optimizer step."""
        self._marks.append(self.seconds)

    @property
    def seconds(self) -> float:
        """Seconds on the clock."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

    @property
    def steps_per_second(self) -> float | None:
        """The rate over the latest steps; None before the first."""
        if len(self._marks) < 2 or self._marks[-1] <= self._marks[0]:
            return None
        return (len(self._marks) - 1) / (self._marks[-1] - self._marks[0])
