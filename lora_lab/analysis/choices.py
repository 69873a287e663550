"""Methods at their own learning rates: chosen on one half of the held-out data, told of the other.

A rate that is chosen by the scores that are then reported makes whatever was tried more often look
better. Here no example that chose a rate is among those that say how good it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from lora_lab._util.format import format_number, plural
from lora_lab._util.tables import Table
from lora_lab.analysis.seeds import OverSeeds, mean_and_spread
from lora_lab.redaction import shown_redacted
from lora_lab.tasks.metrics import KEPT, NATS, metric_of

if TYPE_CHECKING:
    from lora_lab.tasks.intervals import Interval

FEW_RATES, FEW_SEEDS = 5, 3
# Student's t at 0.975, for 1 to 30 degrees of freedom; the normal's beyond.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class MethodChoice(OverSeeds):
    """One method at its best rate.

    Attributes:
        method, setting: as in `MethodRow`.
        train_examples: how many it learned from.
        trainable: as in `MethodRow`.
        curve: {learning rate: the metric on the choosing half, of each seed that ended}.
        learning_rate: the best one of those at which every seed ended.
        values: the metric on the reporting half, a seed each, at that rate.
        seconds, peak_memory, checkpoint_bytes, kept: of these runs, as in `MethodRow`; 0: not
            noted.
        scores: {metric: what `values` is of the one that chose}: all that the task has, and "loss".
        intervals: {metric: the 95 % interval of each seed's score}, by the reporting half's
            examples; see `lora_lab.tasks.intervals`. A metric without one is left out.
        place: which of the methods that were compared it is, from 0.
    """

    method: str
    setting: str
    train_examples: int
    trainable: int
    curve: Mapping[float, tuple[float, ...]]
    learning_rate: float
    values: tuple[float, ...]
    seconds: float = 0.0
    peak_memory: int = 0
    checkpoint_bytes: int = 0
    kept: tuple[float, ...] = ()
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    intervals: Mapping[str, tuple[Interval, ...]] = field(default_factory=dict)
    place: int = 0

    @property
    def name(self) -> str:
        """Method and setting, for people."""
        return f"{self.method} ({self.setting})" if self.setting else self.method

    @property
    def at_edge(self) -> bool:
        """Whether no lower, or no higher rate was tried than the best one."""
        return len(self.curve) > 1 and self.learning_rate in (min(self.curve), max(self.curve))

    def interval(self, metric: str) -> Interval | None:
        """Return how far the examples let a score be off: the ends' means over the seeds.

        All seeds are scored on the same examples, so more seeds make it no narrower. None: no score
        of this metric has one.
        """
        return _mean_ends(self.intervals.get(metric, ()))


@shown_redacted
@dataclass(frozen=True, repr=False)
class Choices:
    """What `compare` found. Printing it shows a table and what follows from it.

    Attributes:
        metric: such as "loss" or "accuracy".
        model, task: what all share.
        chosen_on, reported_on: held-out examples in the two halves.
        rows: by train_examples, then by parameters.
        base: the model without an adapter, on the reporting half.
        note: what the reader has to know besides.
        loss_unit: of a metric that is a loss.
        base_scores: as `base`, by all metrics.
        base_intervals: of these, as `MethodChoice.intervals` has them.
    """

    metric: str
    model: str
    task: str
    chosen_on: int
    reported_on: int
    rows: tuple[MethodChoice, ...]
    base: float
    note: str = ""
    loss_unit: str = NATS
    base_scores: Mapping[str, float] = field(default_factory=dict)
    base_intervals: Mapping[str, Interval] = field(default_factory=dict)

    def own_rates(self, train_examples: int | None = None) -> list[list[float]]:
        """Return each method's best rate, as `compare` takes it: `rates=found.own_rates()`.

        More seeds at these alone, under the same name, cost no more than those that are new.
        A method without a row has no list here: leave it out of the next call too.

        Args:
            train_examples: from how many, where there are several; None: the fewest.
        """
        size = self.rows[0].train_examples if train_examples is None else train_examples
        return [[row.learning_rate] for row in sorted(self._of(size), key=lambda row: row.place)]

    def best(self, train_examples: int) -> MethodChoice:
        """Return the row with the best mean among those of as many training examples."""
        pick = max if metric_of(self.metric).higher_is_better else min
        return pick(self._of(train_examples), key=lambda row: row.mean)

    def to_table(self) -> Table:
        """Return the rows as a table for people."""
        kept = any(row.kept for row in self.rows)
        sure = self.metric if any(row.interval(self.metric) for row in self.rows) else None
        header = (
            *("examples", "method", "setting", "trainable", "learning rate", self.metric),
            *((f"95 % of samples, n = {self.reported_on:,}",) if sure else ()),
            *((KEPT.label,) if kept else ()),
        )
        rows = tuple(_cells(row, sure, kept) for row in self.rows)
        return Table(header, rows, frozenset({*header[3:], header[0]}))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON types."""
        rows = [
            {
                **asdict(row),
                "curve": [[rate, list(values)] for rate, values in row.curve.items()],
                "values": list(row.values),
                "kept": list(row.kept),
                "scores": {name: list(values) for name, values in row.scores.items()},
                "intervals": {k: [list(pair) for pair in v] for k, v in row.intervals.items()},
                "mean": row.mean,
                "spread": row.spread,
            }
            for row in self.rows
        ]
        intervals = {name: list(pair) for name, pair in self.base_intervals.items()}
        return {
            **vars(self),
            "base_intervals": intervals,
            "rows": rows,
            "summary": self.summary(),
        }

    @property
    def halves(self) -> str:
        """On how many examples the rates were chosen, and on how many the scores are."""
        return (
            f"rates chosen on {plural(self.chosen_on, 'held-out example')}, scores on "
            f"{self.reported_on:,} others"
        )

    def summary(self) -> str:
        """Say which differences the spread over seeds carries."""
        sizes = dict.fromkeys(row.train_examples for row in self.rows)
        return " ".join(self._sentence(size, among=len(sizes)) for size in sizes)

    def __str__(self) -> str:
        return "\n".join(filter(None, (str(self.to_table()), *self._below())))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = (f"<div>{escape(line)}</div>" for line in self._below())
        return self.to_table()._repr_html_() + "".join(lines)

    def _below(self) -> Iterator[str]:
        yield self.summary()
        yield "; ".join(filter(None, (self.halves, self.note)))

    def _of(self, train_examples: int) -> list[MethodChoice]:
        return [row for row in self.rows if row.train_examples == train_examples]

    def _sentence(self, train_examples: int, among: int) -> str:
        best = self.best(train_examples)
        where = f"From {plural(train_examples, 'example')}: " if among > 1 else ""
        text = f"{where}{best.name} has the best {metric_of(self.metric).label}, {best.score}"
        others = [row for row in self._of(train_examples) if row is not best]
        if not others:
            return f"{text}."
        carried: list[str] = []
        not_carried: list[str] = []
        for row in others:
            if (ends := difference(best.values, row.values)) is None:
                return f"{text}; of one seed there is no spread, so no difference is shown."
            low, high = sorted(map(abs, ends)) if ends[0] * ends[1] > 0 else ends
            told = f"{row.name} (95 % interval {format_number(low)} to {format_number(high)})"
            (carried if ends[0] * ends[1] > 0 else not_carried).append(told)
        parts = []
        if carried:
            parts.append(f"the spread over seeds carries its lead over {', '.join(carried)}")
        if not_carried:
            parts.append(f"it carries no difference from {', '.join(not_carried)}")
        return f"{text}; {'; '.join(parts)}."


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference of two means, by Welch's t; None: no spread.

    The degrees of freedom are Welch and Satterthwaite's, rounded down.
    """
    sizes = len(first), len(second)
    if min(sizes) < 2:
        return None
    squares = [statistics.variance(x) / n for x, n in zip((first, second), sizes, strict=True)]
    error = sum(squares)
    apart = statistics.fmean(first) - statistics.fmean(second)
    if not error:
        return apart, apart
    freedom = error**2 / sum(s**2 / (n - 1) for s, n in zip(squares, sizes, strict=True))
    whole = int(freedom + 1e-9)  # 4 comes out as 3.9999999999999996
    t = _T[whole - 1] if whole <= len(_T) else 1.96
    return apart - t * math.sqrt(error), apart + t * math.sqrt(error)


def best_rate(curve: Mapping[float, Sequence[float]], seeds: int, metric: str) -> float | None:
    """Return the rate with the best mean, of those at which all seeds ended; None: no such.

    One at which a score is no number is none of these.
    """
    means = {rate: statistics.fmean(v) for rate, v in curve.items() if len(v) == seeds}
    whole = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
    pick = max if metric_of(metric).higher_is_better else min
    return pick(whole, key=whole.__getitem__) if whole else None


def remarks(rows: Iterable[MethodChoice]) -> list[str]:
    """Return what makes a comparison less than it looks, a line each."""
    rows = list(rows)
    told = []
    if rows and (rates := min(len(row.curve) for row in rows)) < FEW_RATES:
        told.append(f"{plural(rates, 'learning rate')} a method; five or more make a curve")
    if rows and (seeds := min(len(row.values) for row in rows)) < FEW_SEEDS:
        told.append(f"{plural(seeds, 'seed')} a method; three or more make a spread")
    if edge := [f"{row.name} at {row.learning_rate:g}" for row in rows if row.at_edge]:
        told.append(f"best at the edge of what was tried, try beyond it: {', '.join(edge)}")
    return told


def _mean_ends(intervals: Sequence[Interval]) -> Interval | None:
    if not intervals:
        return None
    low, high = (statistics.fmean(ends) for ends in zip(*intervals, strict=True))
    return low, high


def _between(interval: Interval | None) -> str:
    return "" if interval is None else " to ".join(map(format_number, interval))


def _cells(row: MethodChoice, sure: str | None, kept: bool) -> tuple[str, ...]:
    return (
        f"{row.train_examples:,}",
        row.method,
        row.setting,
        f"{row.trainable:,}",
        f"{row.learning_rate:g}",
        row.score,
        *((_between(row.interval(sure)),) if sure else ()),
        *((mean_and_spread(row.kept) if row.kept else "",) if kept else ()),
    )
