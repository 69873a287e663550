"""Data in, plotly `go.Figure` out; the only file that imports plotly.

Every figure has an explicit size, a transparent ground, at most 500 points a trace (the map of a
whole model has one cell a site) and float32 values. `summary`, `map_summary`, `loss_summary` and
`memory_summary` say in one sentence what a figure shows, for screen readers and captions. Show
figures with `CONFIG`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import plotly.graph_objects as go

from lora_lab._format import format_bytes
from lora_lab._summaries import loss_summary, map_summary, memory_summary, summary
from lora_lab.analysis import RankMap, SiteView
from lora_lab.analysis.table import number
from lora_lab.memory import MemoryReading

if TYPE_CHECKING:
    from lora_lab.budget import Budget

__all__ = [
    "CONFIG",
    "MEMORY_PARTS",
    "Figure",
    "Theme",
    "effective_rank_figure",
    "loss_figure",
    "loss_summary",
    "map_summary",
    "memory_figure",
    "memory_summary",
    "overlap_figure",
    "plotly_js",
    "spectrum_figure",
    "summary",
    "update_overlap",
    "update_spectrum",
]

Figure = go.Figure
Theme = Literal["light", "dark"]

# No button that uploads the figure to anybody's cloud, no logo, no toolbar.
CONFIG: dict[str, Any] = {
    "showSendToCloud": False,
    "displaylogo": False,
    "displayModeBar": False,
    "responsive": False,
}

MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations")
_PART_COLOURS = dict(zip(MEMORY_PARTS, ("#5b7fc7", "#56b4b0", "#e3a13b", "#b07cc6"), strict=True))
_MOST_POINTS = 500
_OVERLAP_ENDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_BAR_MARGIN = 58  # pixels beside a map for its colour bar


@dataclass(frozen=True)
class _Colours:
    text: str
    dim: str
    line: str
    accent: str
    card: str
    bar: str


_THEMES = {
    "light": _Colours("#1f2328", "#667085", "#e4e7ec", "#3b6fd4", "#fbfcfd", "#3b528b"),
    "dark": _Colours("#e6e8ec", "#98a2b3", "#2a2f38", "#7ea6f4", "#171a20", "#7ea6f4"),
}


def spectrum_figure(
    view: SiteView, *, theme: Theme = "light", width: int = 350, height: int = 190
) -> go.Figure:
    """Draw ΔW's singular values as bars, strongest first."""
    colours = _THEMES[theme]
    figure = go.Figure(
        go.Bar(
            marker={"color": colours.bar, "line": {"width": 0}},
            hovertemplate="σ<sub>%{x}</sub> = %{y:.3g}<extra></extra>",
        ),
        _layout(colours, width, height),
    )
    figure.update_layout(bargap=0.3)
    figure.update_xaxes(title_text="direction of ΔW", dtick=1)
    figure.update_yaxes(
        title_text="singular value σ", showgrid=True, nticks=4, tickformat=".2~g", zeroline=True
    )
    update_spectrum(figure, view, theme)
    return figure


def update_spectrum(figure: Any, view: SiteView, theme: Theme = "light") -> None:
    """Put a new view into a spectrum figure, in place; for a live one in `batch_update()`."""
    s = view.singular_values[:_MOST_POINTS]
    bars = figure.data[0]
    bars.x = np.arange(1, len(s) + 1, dtype=np.int32)
    bars.y = s.astype(np.float32)
    bars.marker.color = _THEMES[theme].bar
    largest = float(s[0]) if len(s) else 0.0
    figure.layout.xaxis.dtick = _tick_step(len(s))
    figure.layout.xaxis.range = [0.4, max(len(s), 3) + 0.6]
    figure.layout.yaxis.range = [0, _rounded_up(largest)] if largest > 0 else [0, 1]
    text = f"σ₁ = {number(largest)}" if largest > 0 else "ΔW is zero: nothing is learnt yet"
    figure.layout.annotations = [_note(text, _THEMES[theme], x=0.99, y=0.98, xanchor="right")]


def overlap_figure(
    view: SiteView, *, theme: Theme = "light", width: int = 400, height: int = 190
) -> go.Figure:
    """Draw the squared cosines of ΔW's directions with W₀'s strongest as a heat map."""
    colours = _THEMES[theme]
    figure = go.Figure(
        go.Heatmap(
            colorscale="Viridis",
            zmin=0,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate="u<sub>%{y}</sub> · w<sub>%{x}</sub>: %{z:.2g}<extra></extra>",
            colorbar=_colour_bar(colours, "cos²"),
        ),
        _layout(colours, width, height),
    )
    figure.update_layout(plot_bgcolor=colours.line, margin_r=_BAR_MARGIN)
    figure.update_xaxes(title_text="direction of W₀", showline=False)
    figure.update_yaxes(title_text="direction of ΔW", showline=False)
    update_overlap(figure, view, theme)
    return figure


def update_overlap(figure: Any, view: SiteView, theme: Theme = "light") -> None:
    """Put a new view into an overlap figure, in place; for a live one in `batch_update()`.

    The colour scale ends at one of eight round numbers, so that it rarely moves.
    """
    shown = view.overlap[: max(1, _MOST_POINTS // view.overlap.shape[1])]
    cells = figure.data[0]
    cells.x = np.arange(1, shown.shape[1] + 1, dtype=np.int32)
    cells.y = np.arange(1, shown.shape[0] + 1, dtype=np.int32)
    cells.z = shown.astype(np.float32)
    largest = float(np.nanmax(shown)) if np.isfinite(shown).any() else 0.0
    top = next((end for end in _OVERLAP_ENDS if largest <= end), 1.0)
    cells.zmax = top  # not to be read back: inside `batch_update` it still has its old value
    cells.colorbar.tickvals = [0, top / 2, top]
    figure.layout.xaxis.range = [0.5, shown.shape[1] + 0.5]
    figure.layout.xaxis.dtick = _tick_step(shown.shape[1])
    figure.layout.yaxis.range = [shown.shape[0] + 0.5, 0.5]
    figure.layout.yaxis.dtick = _tick_step(shown.shape[0])
    colours = _THEMES[theme]
    notes = [_note(f"random level {number(view.random_overlap)}", colours, x=1, y=1.0, above=True)]
    if not np.isfinite(shown).any():
        notes.append(_note("ΔW is zero: it has no directions", colours, x=0.5, y=0.5))
    elif len(shown) < len(view.overlap):
        text = f"first {len(shown)} of {len(view.overlap)} directions"
        notes.append(_note(text, colours, x=0, y=1.0, xanchor="left", above=True))
    figure.layout.annotations = notes


def effective_rank_figure(
    ranks: RankMap, *, theme: Theme = "light", width: int = 400, height: int = 190
) -> go.Figure:
    """Draw the effective rank of every site as a map, layers from left to right, a role a row.

    Sites without an adapter stay empty.
    """
    colours = _THEMES[theme]
    top = float(ranks.ranks.max(initial=2))
    cells = [
        [[role, layer, str(rank)] for layer, rank in zip(ranks.layers, row, strict=True)]
        for role, row in zip(ranks.roles, ranks.ranks, strict=True)
    ]
    figure = go.Figure(
        go.Heatmap(
            x=np.arange(len(ranks.layers), dtype=np.int32),
            y=np.arange(len(ranks.roles), dtype=np.int32),
            z=ranks.values.astype(np.float32),
            customdata=cells,
            colorscale="Viridis",
            zmin=1,
            zmax=top,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate=(
                "layer %{customdata[1]} · %{customdata[0]}<br>"
                "effective rank %{z:.2f} of %{customdata[2]}<extra></extra>"
            ),
            colorbar={**_colour_bar(colours, "rank"), "tickvals": [1, (1 + top) / 2, top]},
        ),
        _layout(colours, width, height),
    )
    step = _tick_step(len(ranks.layers))
    widest = max(map(len, ranks.roles), default=0)
    figure.update_layout(plot_bgcolor=colours.line, margin_r=_BAR_MARGIN, margin_l=18 + 7 * widest)
    figure.update_xaxes(
        title_text="layer",
        tickvals=list(range(0, len(ranks.layers), step)),
        ticktext=list(ranks.layers[::step]),
        range=[-0.5, len(ranks.layers) - 0.5],
        showline=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(ranks.roles))),
        ticktext=list(ranks.roles),
        range=[len(ranks.roles) - 0.5, -0.5],
        showline=False,
    )
    return figure


def loss_figure(
    losses: Sequence[tuple[int, float]],
    *,
    theme: Theme = "light",
    width: int = 640,
    height: int = 220,
) -> go.Figure:
    """Draw the training loss: every step faintly, and the mean of the steps around it.

    Args:
        losses: (step, loss in nats a token); above 500 points, evenly spaced ones are drawn.
        theme: of the page.
        width: pixels.
        height: pixels.
    """
    colours = _THEMES[theme]
    steps, values = _thinned(losses)
    window = len(values) // 24 * 2 + 1
    figure = go.Figure(layout=_layout(colours, width, height))
    figure.add_scatter(
        x=steps,
        y=values,
        mode="lines+markers" if len(values) < 2 else "lines",
        name="each step",
        line={"color": colours.accent, "width": 1},
        opacity=0.35,
        hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
    )
    if window > 1:
        figure.add_scatter(
            x=steps,
            y=_running_mean(values, window),
            mode="lines",
            name=f"mean of {window} points",
            line={"color": colours.accent, "width": 2},
            hovertemplate="mean %{y:.3f}<extra></extra>",
        )
    figure.update_layout(
        hovermode="x unified",
        showlegend=window > 1,
        legend={"orientation": "h", "x": 1, "y": 1.02, "xanchor": "right", "yanchor": "bottom"},
    )
    figure.update_xaxes(title_text="optimizer step", nticks=8, tickformat=",d")
    figure.update_yaxes(title_text="loss, nats a token", showgrid=True, nticks=5, tickformat=".3~g")
    return figure


def memory_figure(
    budget: Budget,
    reading: MemoryReading | None = None,
    *,
    theme: Theme = "light",
    width: int = 640,
    height: int = 190,
) -> go.Figure:
    """Draw memory as stacked bars: full fine-tuning, this plan, and the measured peak if any."""
    colours = _THEMES[theme]
    bars = {"full fine-tuning": budget.full, "this plan": budget.adapted}
    unit, size = _unit(max(memory.total for memory in bars.values()))
    figure = go.Figure(layout=_layout(colours, width, height))
    for part in MEMORY_PARTS:
        amounts = [getattr(memory, part) for memory in bars.values()]
        figure.add_bar(
            name=part,
            orientation="h",
            y=list(bars),
            x=np.array(amounts, np.float64).astype(np.float32) / np.float32(size),
            customdata=[format_bytes(amount) for amount in amounts],
            marker={"color": _PART_COLOURS[part], "line": {"width": 0}},
            hovertemplate=f"{part}: %{{customdata}}<extra>%{{y}}</extra>",
        )
    totals = {label: memory.total for label, memory in bars.items()}
    if reading is not None:
        totals["measured peak"] = reading.peak
        figure.add_bar(
            orientation="h",
            y=["measured peak"],
            x=np.array([reading.peak / size], np.float32),
            customdata=[format_bytes(reading.peak)],
            marker={"color": colours.dim, "line": {"width": 0}},
            hovertemplate=f"{reading.kind}: %{{customdata}}<extra>%{{y}}</extra>",
            showlegend=False,
        )
    figure.update_layout(
        barmode="stack",
        showlegend=True,
        bargap=0.35,
        margin_l=110,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        annotations=[
            {
                "x": total / size,
                "y": label,
                "text": format_bytes(total),
                "showarrow": False,
                "xanchor": "left",
                "xshift": 6,
                "font": {"color": colours.text, "size": 12},
            }
            for label, total in totals.items()
        ],
    )
    # Room behind the longest bar for its total.
    figure.update_xaxes(title_text=unit, range=[0, max(totals.values()) / size * 1.2], nticks=6)
    figure.update_yaxes(categoryorder="array", categoryarray=list(totals)[::-1], showline=False)
    return figure


def plotly_js() -> str:
    """Return plotly.js itself, about 5 MB, for a page that needs no network."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _unit(count: int) -> tuple[str, int]:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return unit, size
    return "B", 1


def _layout(colours: _Colours, width: int, height: int) -> go.Layout:
    axis = {
        "showgrid": False,
        "zeroline": False,
        "linecolor": colours.line,
        "gridcolor": colours.line,
        "showline": True,
        # Invisible ticks: they only hold the labels off the axis.
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": {"size": 11, "color": colours.dim},
        "title": {"font": {"size": 11, "color": colours.dim}, "standoff": 6},
        "zerolinecolor": colours.line,
        "fixedrange": True,
    }
    return go.Layout(
        template="none",
        width=width,
        height=height,
        autosize=False,
        margin={"l": 52, "r": 12, "t": 22, "b": 40, "pad": 0, "autoexpand": False},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": colours.text},
        showlegend=False,
        hoverlabel={"bgcolor": colours.card, "font": {"color": colours.text, "size": 12}},
        xaxis=axis,
        yaxis={**axis, "showline": False},
        legend={"font": {"size": 11, "color": colours.dim}},
    )


def _colour_bar(colours: _Colours, title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 11, "color": colours.dim}},
        "thickness": 8,
        "len": 1,
        "outlinewidth": 0,
        "ticks": "",
        "nticks": 4,
        "tickfont": {"size": 11, "color": colours.dim},
        "xpad": 6,
        "ypad": 0,
    }


def _note(
    text: str,
    colours: _Colours,
    *,
    x: float,
    y: float,
    xanchor: str | None = None,
    above: bool = False,
) -> dict[str, Any]:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": xanchor or ("right" if x == 1 else "center"),
        "yanchor": "bottom" if above else "top",
        "showarrow": False,
        "font": {"size": 11, "color": colours.dim},
    }


def _tick_step(count: int) -> int:
    """Return the distance of ticks that gives at most a dozen of them."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 500) if count <= 12 * step)


def _rounded_up(value: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 5, 7 × 10ⁿ: an axis that moves seldom while ΔW grows."""
    power = 10 ** math.floor(math.log10(value))
    return next(m * power for m in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0) if value <= m * power)


def _thinned(losses: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    points = np.array(losses, np.float64).reshape(-1, 2)
    if len(points) > _MOST_POINTS:
        points = points[np.linspace(0, len(points) - 1, _MOST_POINTS).round().astype(int)]
    return points[:, 0].astype(np.int32), points[:, 1].astype(np.float32)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the points around each one.

    Centred, and narrower towards the steep start; at the end, of the points that there are.
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    centre = np.arange(len(values))
    half = np.minimum(window // 2, centre)
    starts, ends = centre - half, np.minimum(len(values), centre + half + 1)
    return ((sums[ends] - sums[starts]) / (ends - starts)).astype(np.float32)
