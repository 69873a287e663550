"""Scores over learning rates, a curve a method: a U of losses, its mirror image of scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import plotly.graph_objects as go

from lora_lab._util.format import plural
from lora_lab.analysis.choices import Choices
from lora_lab.analysis.methods import MethodComparison
from lora_lab.analysis.rates import RateCurve, rate_curves
from lora_lab.analysis.seeds import mean_and_spread
from lora_lab.captions.delta_w import measured, rate_text
from lora_lab.figures._base import THEMES, Colors, Figure, Theme, base_layout, plain
from lora_lab.figures._labels import Box
from lora_lab.figures._method_look import look
from lora_lab.figures._scatter import Plot, Point, draw
from lora_lab.tasks.metrics import metric_of

_LEAST = 360  # pixels of a plot's width
_HEIGHT = 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 44  # pixels about each plot
_FAR = 3  # what is so many times as far from the best as the middle one runs out of the plot


def rate_curves_figure(
    data: MethodComparison | Choices,
    *,
    theme: Theme = "either",
    width: int = 720,
    height: int | None = None,
) -> go.Figure:
    """Draw each method's score over its learning rates: mean and standard deviation over seeds.

    The name stands at a method's best rate. What is far worse than most runs out of the plot, and
    says its value under the pointer. A comparison over several numbers of training examples has a
    plot of each.

    Args:
        data: what `compare` found (on the half of the held-out data that chooses), or
            `compare_methods`.
        theme: of the page.
        width, height: in pixels; the height is that of one plot, plots that are too narrow beside
            each other stand below each other.
    """
    colors = THEMES[theme]
    curves = rate_curves(data)
    sizes = list(dict.fromkeys(curve.train_examples for curve in curves))
    boxes, whole = _boxes(len(sizes), width, height or _HEIGHT)
    figure = Figure(layout=base_layout(colors, width, whole))
    figure.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0})
    for number, (size, box) in enumerate(zip(sizes, boxes, strict=True)):
        axes = str(number + 1) if number else ""
        own = [curve for curve in curves if curve.train_examples == size]
        draw(figure, _plot(data, own, size, axes, box, colors), colors)
        rates = sorted({rate for curve in own for rate in curve.points})
        rates = rates[:: math.ceil(len(rates) / max(1, (box.right - box.left) // 52))]
        figure.layout[f"xaxis{axes}"].update(
            tickvals=[math.log10(rate) for rate in rates], ticktext=list(map(rate_text, rates))
        )
    return figure


def _boxes(count: int, width: int, height: int) -> tuple[list[Box], int]:
    """Return where the plots stand, margins taken off, and how high the figure is."""
    columns = max(1, min(count, width // _LEAST))
    rows = math.ceil(count / columns)
    across = width / columns
    boxes = []
    for place in range(count):
        row, column = divmod(place, columns)
        boxes.append(
            Box(
                column * across + _LEFT,
                row * height + _TOP,
                (column + 1) * across - _RIGHT,
                (row + 1) * height - _BOTTOM,
            )
        )
    return boxes, rows * height


def _plot(
    data: MethodComparison | Choices,
    curves: Sequence[RateCurve],
    size: int | None,
    axes: str,
    box: Box,
    colors: Colors,
) -> Plot:
    name, unit = measured(data)
    low_is_good = not metric_of(data.metric).higher_is_better
    title = f"{data.model} on {data.task}"
    if size is not None:
        title += f", {plural(size, 'example')}"
    y_title = ", ".join(filter(None, (name, unit)))
    points = [
        Point(
            curve.name,
            math.log10(rate),
            statistics.fmean(values),
            *look(curve.method, colors),
            hover=f"{plain(curve.name)}, learning rate {rate_text(rate)}<br>"
            f"{mean_and_spread(values)}" + (f" ({len(values)} runs)" if len(values) > 1 else ""),
            label=curve.name if rate == curve.best else "",
            spread=statistics.stdev(values) if len(values) > 1 else 0.0,
        )
        for curve in curves
        for rate, values in curve.points.items()
        if values
    ]
    return Plot(
        axes=axes,
        box=box,
        title=title,
        x_title="learning rate",
        y_title=f"{y_title} (lower is better)" if low_is_good else y_title,
        points=points,
        lines=True,
        y_ends=_ends(points, low_is_good=low_is_good),
    )


def _ends(points: Sequence[Point], *, low_is_good: bool) -> tuple[float, float] | None:
    """Return the ends of the axis, so that a diverged run does not press all others flat."""
    if not points:
        return None
    low = min(point.y - point.spread for point in points)
    high = max(point.y + point.spread for point in points)
    values = [point.y for point in points]
    middle = statistics.median(values)
    if low_is_good and middle > min(values):
        high = min(high, min(values) + _FAR * (middle - min(values)))
    elif not low_is_good and middle < max(values):
        low = max(low, max(values) - _FAR * (max(values) - middle))
    return low, high
