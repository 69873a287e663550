"""What runs that differ in their seed alone came to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lora_lab._util.format import format_number


class OverSeeds:
    """A row of a comparison: a score of each seed, in `values`."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the values (n − 1); None of a single one."""
        return spread_of(self.values)

    @property
    def score(self) -> str:
        """Mean ± spread, for people."""
        return mean_and_spread(self.values)


def spread_of(values: Sequence[float]) -> float | None:
    """Return the standard deviation (n − 1); None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def mean_and_spread(values: Sequence[float]) -> str:
    """Return "1.20 ± 0.03", or the one value."""
    spread = spread_of(values)
    told = "" if spread is None else f" ± {spread:.2g}"
    return format_number(statistics.fmean(values)) + told
