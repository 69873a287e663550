"""Methods against each other: a metric over the number of trainable parameters, as in figure 2."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from lora_lab._util.format import format_count
from lora_lab.analysis.methods import MethodComparison, MethodRow
from lora_lab.captions.delta_w import measured, rate_text
from lora_lab.figures._base import THEMES, Colors, Figure, Theme, base_layout, plain
from lora_lab.figures._labels import Box
from lora_lab.figures._method_look import look
from lora_lab.figures._scatter import Plot, Point, draw
from lora_lab.paper.tables import TABLES

_BESIDE = 820  # pixels of width from which the published points stand beside, not below
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 26, 44  # pixels about each plot
_PUBLISHED = (("WikiSQL", "GPT-3 175B on WikiSQL"), ("MNLI-m", "GPT-3 175B on MNLI-m"))
_HEIGHT_BESIDE, _HEIGHT_BELOW = 480, 940


def method_comparison(
    comparison: MethodComparison,
    *,
    published: bool = True,
    theme: Theme = "either",
    width: int = 900,
    height: int | None = None,
) -> go.Figure:
    """Draw each method's metric over log₁₀ of its trainable parameters.

    Blue is LoRA and what is made of it, orange adapter layers, gray learned tokens and biases,
    black (or white) full fine-tuning. Bars are the standard deviation over seeds; the dotted line
    is the base model before training, where it does not lie far off.

    Args:
        comparison: what `compare_methods` returns.
        published: put the points of Hu et al. (2022), tables 4 and 15, beside it, in the shape of
            their figure 2: GPT-3 175B on WikiSQL and MNLI-m, validation accuracy in percent.
        theme: of the page.
        width, height: in pixels; below 820 the published plots stand below.
    """
    colors = THEMES[theme]
    beside = published and width >= _BESIDE
    height = height or (_HEIGHT_BELOW if published and not beside else _HEIGHT_BESIDE)
    figure = Figure(layout=base_layout(colors, width, height))
    figure.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0})
    boxes = _boxes(width, height, published=published, beside=beside)
    plots = [_own(comparison, boxes[0], colors)]
    plots += [
        _paper(score, title, box, str(i + 2), colors)
        for i, ((score, title), box) in enumerate(zip(_PUBLISHED, boxes[1:], strict=False))
    ]
    for plot in plots:
        draw(figure, plot, colors)
    return figure


def _boxes(width: int, height: int, *, published: bool, beside: bool) -> list[Box]:
    """Return where the plots stand, margins taken off."""
    if not published:
        cells = [Box(0, 0, width, height)]
    elif beside:
        middle = 0.53 * width
        cells = [
            Box(0, 0, middle, height),
            Box(middle, 0, width, height / 2),
            Box(middle, height / 2, width, height),
        ]
    else:
        first, second = 0.42 * height, 0.71 * height
        cells = [
            Box(0, 0, width, first),
            Box(0, first, width, second),
            Box(0, second, width, height),
        ]
    return [
        Box(cell.left + _LEFT, cell.top + _TOP, cell.right - _RIGHT, cell.bottom - _BOTTOM)
        for cell in cells
    ]


def _own(comparison: MethodComparison, box: Box, colors: Colors) -> Plot:
    name, unit = measured(comparison)
    y_title = ", ".join(filter(None, (name, unit)))
    methods = [row.method for row in comparison.rows]
    points = [
        Point(
            row.method,
            math.log10(row.trainable),
            row.mean,
            *look(row.method, colors),
            hover=_hover(row),
            label=f"{row.method} {row.setting}" if methods.count(row.method) > 1 else row.method,
            spread=row.spread or 0.0,
        )
        for row in comparison.rows
        if row.trainable
    ]
    return Plot(
        axes="",
        box=box,
        title=f"{comparison.model} on {comparison.task}, {comparison.steps:,} steps",
        x_title="log₁₀ of the trainable parameters",
        y_title=f"{y_title} (lower is better)" if comparison.low_is_good else y_title,
        points=points,
        lines=False,
        base=comparison.base,
    )


def _hover(row: MethodRow) -> str:
    runs = "" if row.spread is None else f" ({len(row.values)} runs)"
    return (
        f"{plain(row.method)} {plain(row.setting)}<br>{format_count(row.trainable)} parameters, "
        f"learning rate {rate_text(row.learning_rate)}<br>{row.score}{runs}"
    )


def _paper(score: str, title: str, box: Box, axes: str, colors: Colors) -> Plot:
    rows = [row for row in TABLES if row.table == "Table 15"]
    known = {row.method for row in rows}
    rows += [row for row in TABLES if row.table == "Table 4" and row.method not in known]
    best: dict[str, float] = {}
    for row in rows:
        best[row.method] = max(best.get(row.method, 0), row.scores[score])
    points = []
    for row in rows:
        # A line of points is named once, at its best.
        named = row.scores[score] == best.get(row.method)
        if named:
            del best[row.method]
        points.append(
            Point(
                row.method,
                math.log10(row.published),
                row.scores[score],
                *look(row.method, colors),
                hover=f"{row.method} {row.setting}<br>{row.printed} M parameters as printed<br>"
                f"{row.scores[score]:.1f} %",
                label=row.method if named else "",
            )
        )
    points.sort(key=lambda point: point.x)
    return Plot(
        axes=axes,
        box=box,
        title=f"{title} (Hu et al., 2022)",
        x_title="" if axes == "2" else "log₁₀ of the trainable parameters",
        y_title="accuracy, %",
        points=points,
        lines=True,
    )
