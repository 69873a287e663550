"""A method's score over its learning rates: the U (or its mirror image) of every comparison."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from lora_lab.analysis.choices import Choices, best_rate
from lora_lab.analysis.methods import MethodComparison


@dataclass(frozen=True)
class RateCurve:
    """One method with one setting, over its learning rates.

    Attributes:
        method, setting: as in `MethodRow`.
        train_examples: how many it learned from; None where they are not told.
        points: {learning rate: the metric of each seed that ended}, ascending.
        best: the rate with the best mean, of those at which as many seeds ended as at any; None:
            no run has ended.
    """

    method: str
    setting: str
    train_examples: int | None
    points: Mapping[float, tuple[float, ...]]
    best: float | None

    @property
    def name(self) -> str:
        """Method and setting, for people."""
        return f"{self.method} ({self.setting})" if self.setting else self.method

    @property
    def at_edge(self) -> bool:
        """Whether no lower, or no higher rate was tried than the best one."""
        return len(self.points) > 1 and self.best in (min(self.points), max(self.points))


def rate_curves(data: MethodComparison | Choices) -> tuple[RateCurve, ...]:
    """Return every method's curve.

    Args:
        data: what `compare` found, then on the half of the held-out data that chooses; or what
            `compare_methods` found of runs at several rates.
    """
    if isinstance(data, Choices):
        return tuple(
            RateCurve(r.method, r.setting, r.train_examples, _finite(r.curve), r.learning_rate)
            for r in data.rows
        )
    found: defaultdict[tuple[str, str], dict[float, tuple[float, ...]]] = defaultdict(dict)
    for row in data.rows:
        found[row.method, row.setting][row.learning_rate] = row.values
    curves = []
    for (method, setting), points in found.items():
        whole = _finite(points)
        seeds = max(map(len, whole.values()), default=0)
        best = best_rate(whole, seeds, data.metric)
        curves.append(RateCurve(method, setting, None, whole, best))
    return tuple(curves)


def _finite(points: Mapping[float, tuple[float, ...]]) -> dict[float, tuple[float, ...]]:
    return {rate: tuple(filter(math.isfinite, points[rate])) for rate in sorted(points)}
