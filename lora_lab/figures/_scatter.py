"""A scatter plot whose points carry their names: one of several in a figure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lora_lab._util.format import format_number
from lora_lab.figures._base import Colors, axis, heading, note, plain
from lora_lab.figures._labels import Box, line_boxes, place_labels, text_box


@dataclass(frozen=True)
class Point:
    """One mark.

    Attributes:
        group: marks of one group are one trace.
        x, y: its place.
        color, symbol: its look.
        hover: text with plotly's markup.
        label: its name in the plot; "" for none.
        spread, x_spread: half the length of its bars, up and across.
    """

    group: str
    x: float
    y: float
    color: str
    symbol: str
    hover: str
    label: str = ""
    spread: float = 0.0
    x_spread: float = 0.0


@dataclass(frozen=True)
class Plot:
    """One of a figure's plots.

    Attributes:
        axes: the number of its own axes: "" for the first, "2", "3" …
        box: where it stands in the figure, in pixels.
        title, x_title, y_title: in words.
        points: by x, where they are joined.
        lines: whether the points of a group are joined.
        base: what the base model came to; None: nothing is drawn.
        y_ends: what the axis has to hold; None: all points.
    """

    axes: str
    box: Box
    title: str
    x_title: str
    y_title: str
    points: Sequence[Point]
    lines: bool
    base: float | None = None
    y_ends: tuple[float, float] | None = None


def draw(figure: go.Figure, plot: Plot, colors: Colors) -> None:
    """Add a plot to a figure of explicit size and no margins."""
    width, height = figure.layout.width, figure.layout.height
    box = plot.box
    ends = [(point.x - point.x_spread, point.x + point.x_spread) for point in plot.points]
    xs = [x for pair in ends for x in pair] or [0.0, 1.0]
    low = [point.y - point.spread for point in plot.points]
    high = [point.y + point.spread for point in plot.points]
    base = plot.base
    if base is not None and _near(base, low, high):
        low.append(base)
        high.append(base)
    x_range = _padded(min(xs), max(xs), 0.14)
    y_range = _padded(*(plot.y_ends or (min(low, default=0.0), max(high, default=1.0))), 0.1)
    figure.layout[f"xaxis{plot.axes}"] = axis(
        colors,
        domain=[box.left / width, box.right / width],
        anchor=f"y{plot.axes}",
        range=x_range,
        nticks=8,
    )
    figure.layout[f"yaxis{plot.axes}"] = axis(
        colors,
        domain=[1 - box.bottom / height, 1 - box.top / height],
        anchor=f"x{plot.axes}",
        range=y_range,
        nticks=6,
        showgrid=True,
        showline=False,
    )
    figure.layout[f"xaxis{plot.axes}"].title.text = plot.x_title
    figure.layout[f"yaxis{plot.axes}"].title.text = plot.y_title
    for group in dict.fromkeys(point.group for point in plot.points):
        members = [point for point in plot.points if point.group == group]
        axes = {"xaxis": f"x{plot.axes}", "yaxis": f"y{plot.axes}"}
        figure.add_scatter(name=group, **axes, **_trace(members, plot.lines))
    title = heading(plain(plot.title), colors, x=box.left / width, y=1 - box.top / height)
    figure.add_annotation(title)
    obstacles = [] if base is None else [_add_base(figure, plot, base, y_range, colors)]
    for one in _labels(plot, x_range, y_range, obstacles, colors):
        figure.add_annotation(one)


def _near(value: float, low: Sequence[float], high: Sequence[float]) -> bool:
    """Whether an axis that also holds the value is at most half as long again."""
    if not low:
        return True
    reach = (max(high) - min(low)) / 2
    return min(low) - reach <= value <= max(high) + reach


def _padded(low: float, high: float, share: float) -> list[float]:
    pad = share * (high - low) or 0.5
    return [low - pad, high + pad]


def _trace(members: Sequence[Point], lines: bool) -> dict[str, Any]:
    spreads = np.array([point.spread for point in members], np.float32)
    across = np.array([point.x_spread for point in members], np.float32)
    joined = lines and len(members) > 1
    color, outline = members[0].color, {"color": members[0].color, "width": 1.4}
    return {
        "x": np.array([point.x for point in members], np.float32),
        "y": np.array([point.y for point in members], np.float32),
        "error_y": {"array": spreads, "width": 3, "thickness": 1.2, "visible": bool(spreads.any())},
        "error_x": {"array": across, "width": 3, "thickness": 1.2, "visible": bool(across.any())},
        "mode": "lines+markers" if joined else "markers",
        "line": {"color": color, "width": 1.2},
        "marker": {"color": color, "symbol": members[0].symbol, "size": 8, "line": outline},
        "customdata": [point.hover for point in members],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _add_base(
    figure: go.Figure, plot: Plot, value: float, y_range: Sequence[float], colors: Colors
) -> Box:
    """Draw the base model's line, or say where it would be; return what the words cover."""
    text = f"base model {format_number(value)}"
    inside = y_range[0] <= value <= y_range[1]
    if inside:
        figure.add_shape(
            type="line",
            x0=0,
            x1=1,
            xref=f"x{plot.axes} domain",
            y0=value,
            y1=value,
            yref=f"y{plot.axes}",
            line={"color": colors.dim, "width": 1, "dash": "dot"},
            layer="below",
        )
        share, above = (value - y_range[0]) / (y_range[1] - y_range[0]), True
    else:
        over = value > y_range[1]
        text, share, above = f"{text} {'↑' if over else '↓'}", float(over), not over
    named = note(text, colors, x=0, y=share, xanchor="left", above=above)
    named |= {"xref": f"x{plot.axes} domain", "yref": f"y{plot.axes} domain"}
    figure.add_annotation(named)
    height = plot.box.bottom - plot.box.top
    size = text_box(text, 0, 0)
    bottom = height * (1 - share) + (0 if above else 2 * size.bottom)
    return Box(0, bottom - 2 * size.bottom, 2 * size.right, bottom)


def _labels(
    plot: Plot,
    x_range: Sequence[float],
    y_range: Sequence[float],
    obstacles: Sequence[Box],
    colors: Colors,
) -> Iterator[dict[str, Any]]:
    width, height = plot.box.right - plot.box.left, plot.box.bottom - plot.box.top
    pixels = [
        (
            width * (point.x - x_range[0]) / (x_range[1] - x_range[0]),
            height * (y_range[1] - point.y) / (y_range[1] - y_range[0]),
        )
        for point in plot.points
    ]
    texts = [point.label for point in plot.points]
    if plot.lines:
        obstacles = [*obstacles, *_line_boxes(plot.points, pixels)]
    places = place_labels(pixels, texts, (width, height), obstacles)
    for point, place in zip(plot.points, places, strict=True):
        if not point.label:
            continue
        found: dict[str, Any] = {
            "text": re.sub(r"\^(\w)", r"<sup>\1</sup>", plain(point.label)),
            "x": point.x,
            "y": point.y,
            "xref": f"x{plot.axes}",
            "yref": f"y{plot.axes}",
            "font": {"size": 11, "color": point.color},
        }
        if place.far:
            line = {"arrowhead": 0, "arrowwidth": 0.7, "arrowcolor": colors.dim, "standoff": 5}
            yield found | line | {"showarrow": True, "ax": place.dx, "ay": place.dy}
        else:
            yield found | {"showarrow": False, "xshift": place.dx, "yshift": -place.dy}


def _line_boxes(points: Sequence[Point], pixels: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """Yield what the lines cover that join each group's points."""
    last: dict[str, tuple[float, float]] = {}
    for point, place in zip(points, pixels, strict=True):
        if point.group in last:
            yield from line_boxes(last[point.group], place)
        last[point.group] = place
