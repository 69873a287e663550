"""Which of several methods no other one beats on two things at once: the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

from lora_lab.analysis.choices import Choices, MethodChoice
from lora_lab.analysis.methods import MethodComparison, MethodRow
from lora_lab.analysis.seeds import spread_of
from lora_lab.errors import ConfigError
from lora_lab.tasks.metrics import metric_of

Against = Literal["parameters", "seconds", "memory", "kept"]


@dataclass(frozen=True)
class FrontPoint:
    """One method with one setting.

    Attributes:
        row: of the comparison.
        x: what it took, or kept: parameters, seconds, bytes, or nats per token.
        x_spread: over seeds; 0 where it has none.
        on_front: no other row is as good in both and better in one.
    """

    row: MethodRow | MethodChoice
    x: float
    x_spread: float
    on_front: bool


def pareto_points(
    data: MethodComparison | Choices, against: Against = "parameters"
) -> tuple[FrontPoint, ...]:
    """Return each row with its place in a trade of the metric against what it costs.

    Less is better of all that it may be against: trainable parameters, seconds of training, peak
    memory in bytes, the loss on text that the base model wrote itself, in nats per token ("kept").
    Of a comparison over several numbers of training examples each number has a front of its own.

    Args:
        data: what `compare_methods` or `compare` found.
        against: the cost.

    Raises:
        ConfigError: it is none of these, or no run has noted it.
    """
    if against not in get_args(Against):
        raise ConfigError(f"against is {against!r}; use one of {', '.join(get_args(Against))}")
    found = [(row, values) for row in data.rows if (values := _values(row, against))]
    if not found:
        raise ConfigError(f"no run of this comparison has noted {against!r}; use another one")
    higher = metric_of(data.metric).higher_is_better
    places = [(fmean(values), row.mean) for row, values in found]
    front: set[int] = set()
    for size in {_size(row) for row, _ in found}:
        own = [n for n, (row, _) in enumerate(found) if _size(row) == size]
        front |= {own[n] for n in front_of([places[n] for n in own], higher)}
    return tuple(
        FrontPoint(row, places[n][0], spread_of(values) or 0.0, n in front)
        for n, (row, values) in enumerate(found)
    )


def front_of(points: Sequence[tuple[float, float]], higher: bool) -> list[int]:
    """Return the places of the (cost, score) pairs that no other one beats.

    None is as good in both and better in one, as PEFT's comparison has it. A lower cost is better,
    and a higher score, or a lower one where not `higher`.
    """
    return [
        place
        for place, own in enumerate(points)
        if not any(_beats(other, own, higher) for other in points)
    ]


def _beats(one: tuple[float, float], other: tuple[float, float], higher: bool) -> bool:
    """Whether (cost, score) is as good as another one in both and better in one."""
    sign = -1 if higher else 1
    pairs = [(one[0], other[0]), (sign * one[1], sign * other[1])]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _values(row: MethodRow | MethodChoice, against: Against) -> tuple[float, ...]:
    """Return a row's cost, one number or one a seed; () where it is not known."""
    if against == "kept":
        return row.kept
    name = {"parameters": "trainable", "memory": "peak_memory"}.get(against, against)
    value = getattr(row, name)
    return (float(value),) if value else ()


def _size(row: MethodRow | MethodChoice) -> int | None:
    return getattr(row, "train_examples", None)
