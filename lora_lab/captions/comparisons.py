"""Comparisons in words: methods over their learning rates, and what their scores cost."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from lora_lab._util.format import format_number, plural
from lora_lab.analysis.choices import Choices
from lora_lab.analysis.pareto import Against, pareto_points
from lora_lab.analysis.rates import rate_curves
from lora_lab.captions.delta_w import measured, rate_text

if TYPE_CHECKING:
    from lora_lab.analysis.methods import MethodComparison

AGAINST = {
    "parameters": "trainable parameters",
    "seconds": "seconds of training",
    "memory": "peak memory",
    "kept": "loss on the base model's own text",
}
"""{what a front may be against: its name for people}."""


def rate_curves_summary(data: MethodComparison | Choices) -> str:
    """Say in words what the curves show: each method's best rate, and which lie at an edge."""
    curves = rate_curves(data)
    sizes = {curve.train_examples for curve in curves}
    parts = []
    for curve in curves:
        if curve.best is None:
            parts.append(f"{curve.name} ended at no rate")
            continue
        of = f" from {curve.train_examples:,} examples" if len(sizes) > 1 else ""
        score = format_number(statistics.fmean(curve.points[curve.best]))
        edge = ", the edge of what was tried" if curve.at_edge else ""
        parts.append(f"{curve.name}{of} at {rate_text(curve.best)} ({score}{edge})")
    name, unit = measured(data)
    empty = sum(not values for curve in curves for values in curve.points.values())
    failed = f" At {plural(empty, 'rate')} no run has ended." if empty else ""
    half = " on the half of the held-out data that chooses" if isinstance(data, Choices) else ""
    head = f"{name[:1].upper()}{name[1:]}"
    unit = f" in {unit}" if unit else ""
    return f"{head}{unit}{half}, best: {'; '.join(parts)}.{failed}"


def pareto_summary(data: MethodComparison | Choices, against: Against = "parameters") -> str:
    """Say in words which methods no other one beats, and which are beaten."""
    points = pareto_points(data, against)
    name, _ = measured(data)
    front = [point for point in points if point.on_front]
    beaten = [_named(point.row) for point in points if not point.on_front]
    text = (
        f"On the front of {name} against {AGAINST[against]} "
        f"{'is' if len(front) == 1 else 'are'} "
        + "; ".join(f"{_named(p.row)} ({p.row.score})" for p in sorted(front, key=lambda p: p.x))
    )
    if beaten:
        text += f". Beaten on both by another one: {', '.join(beaten)}"
    if lacking := len(data.rows) - len(points):
        text += f". {plural(lacking, 'row')} left out: not noted there"
    return (
        f"{text}. Means over seeds: a lead within the spread puts a method on the front by chance."
    )


def _named(row: object) -> str:
    method, setting = getattr(row, "method", ""), getattr(row, "setting", "")
    return f"{method} ({setting})" if setting else method
