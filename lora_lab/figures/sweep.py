"""Many runs as one map: rank × learning rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from lora_lab._util.format import format_number
from lora_lab.analysis.sweep import SweepMap
from lora_lab.captions.delta_w import measured, rate_text
from lora_lab.figures._base import (
    BAR_MARGIN,
    LETTER,
    THEMES,
    Colors,
    Figure,
    Theme,
    base_layout,
    color_bar,
    heading,
    note,
    plain,
)
from lora_lab.tasks.metrics import metric_of

_ROW = 34  # pixels of a rank
_CELL_TEXT = 40  # pixels that a number in a cell needs


def sweep_figure(
    sweep: SweepMap, *, theme: Theme = "either", width: int = 420, height: int | None = None
) -> go.Figure:
    """Draw a metric over ranks and learning rates; the best cell is framed.

    Bright is good, whether the metric is to be low or high. Runs that are far worse than the
    middle one (diverged ones) do not stretch the color scale; their cells still say their value.
    Cells without a run stay empty.
    """
    colors = THEMES[theme]
    rows, columns = sweep.values.shape
    figure = Figure(layout=base_layout(colors, width, height or max(150, 66 + _ROW * max(1, rows))))
    left = 44 + int(LETTER * max((len(str(rank)) for rank in sweep.ranks), default=0))
    figure.update_layout(plot_bgcolor=colors.line, margin={"l": left, "r": BAR_MARGIN + 12})
    low_is_good = not metric_of(sweep.metric).higher_is_better
    ends = _color_ends(sweep.values, low_is_good=low_is_good)
    cell_width = (width - left - BAR_MARGIN - 12) / max(1, columns)
    figure.add_heatmap(
        x=np.arange(columns, dtype=np.int32),
        y=np.arange(rows, dtype=np.int32),
        z=sweep.values.astype(np.float32),
        customdata=_cell_texts(sweep),
        colorscale="Viridis_r" if low_is_good else "Viridis",
        zmin=ends[0],
        zmax=ends[1],
        xgap=3,
        ygap=3,
        hoverongaps=False,
        text=[
            [format_number(v) if np.isfinite(v) else "" for v in row]
            for row in sweep.values.tolist()
        ],
        texttemplate="%{text}" if cell_width >= _CELL_TEXT else "",
        textfont={"size": 12},
        hovertemplate="%{customdata}: %{z:.4g}<extra></extra>",
        colorbar=color_bar(colors, "") | _bar_ticks(sweep.values, ends),
    )
    figure.update_xaxes(
        title_text="learning rate",
        tickvals=list(range(columns)),
        ticktext=[rate_text(rate) for rate in sweep.learning_rates],
        range=[-0.5, columns - 0.5],
        showline=False,
    )
    figure.update_yaxes(
        title_text="rank r",
        tickvals=list(range(rows)),
        ticktext=list(map(str, sweep.ranks)),
        range=[-0.5, rows - 0.5],
    )
    figure.add_annotation(heading(plain(", ".join(filter(None, measured(sweep)))), colors))
    _frame_best(figure, sweep, colors)
    return figure


def _cell_texts(sweep: SweepMap) -> list[list[str]]:
    """Return what each cell says of itself under the pointer."""
    alphas = sweep.alphas or (None,) * len(sweep.ranks)
    return [
        [
            _cell_text(rank, alpha, rate, count)
            for rate, count in zip(sweep.learning_rates, row, strict=True)
        ]
        for rank, alpha, row in zip(sweep.ranks, alphas, sweep.counts.tolist(), strict=True)
    ]


def _frame_best(figure: go.Figure, sweep: SweepMap, colors: Colors) -> None:
    if np.isfinite(sweep.values).any():
        row = sweep.ranks.index(sweep.best[0])
        column = sweep.learning_rates.index(sweep.best[1])
        figure.add_shape(
            type="rect",
            x0=column - 0.5,
            x1=column + 0.5,
            y0=row - 0.5,
            y1=row + 0.5,
            line={"color": colors.text, "width": 2},
        )
        figure.add_annotation(note("best framed", colors, x=1, y=1, above=True))
    else:
        figure.add_annotation(note("no run has ended with it", colors, x=0.5, y=0.5))


def _color_ends(values: np.ndarray, *, low_is_good: bool) -> tuple[float, float]:
    """Return the ends of the color scale: on the bad side at most twice the middle's distance."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return 0.0, 1.0
    low, high, middle = float(finite.min()), float(finite.max()), float(np.median(finite))
    if low_is_good and middle > low:
        high = min(high, low + 3 * (middle - low))
    elif not low_is_good and middle < high:
        low = max(low, high - 3 * (high - middle))
    return low, high


def _bar_ticks(values: np.ndarray, ends: tuple[float, float]) -> dict[str, Any]:
    """Return three ticks; an end that values go beyond says so."""
    finite = values[np.isfinite(values)]
    low, high = (format_number(end) for end in ends)
    if len(finite) and finite.min() < ends[0]:
        low = f"≤ {low}"
    if len(finite) and finite.max() > ends[1]:
        high = f"≥ {high}"
    middle = sum(ends) / 2
    return {"tickvals": [ends[0], middle, ends[1]], "ticktext": [low, format_number(middle), high]}


def _cell_text(rank: int, alpha: float | None, rate: float, count: int) -> str:
    scaled = "" if alpha is None else f", α = {alpha:g}"
    runs = f", mean of {count} runs" if count > 1 else ""
    return f"r = {rank}{scaled}, learning rate {rate_text(rate)}{runs}"
