"""What all figures share: themes, the layout, notes, scales that are easy to read."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from lora_lab.redaction import redacted, redacted_values

Theme = Literal["light", "dark", "either"]
"""The page's; "either" is read on a light and on a dark one, where nobody says which it is."""

# No button that uploads the figure to anybody's cloud, no logo, no toolbar.
CONFIG: dict[str, Any] = {
    "showSendToCloud": False,
    "displaylogo": False,
    "displayModeBar": False,
    "responsive": False,
}


class Figure(go.Figure):
    """plotly's figure, of which no text that is shown, written or sent has a secret in it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plotly's plain values."""
        return {key: _without_secrets(own) for key, own in super().to_dict().items()}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, np.ndarray):  # of texts; numbers are packed
        return redacted_values(value.tolist()) if value.dtype.kind in "OU" else value
    if isinstance(value, dict):
        return {k: own if k == "bdata" else _without_secrets(own) for k, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(own) for own in value]
    return redacted(value) if isinstance(value, str) else value


MOST_POINTS = 500
BAR_MARGIN = 58  # pixels beside a map for its color bar
LETTER = 6.2  # pixels of a letter of a label, on average
_LEGEND_MARK = 46  # pixels of a legend's line with the gaps about it


@dataclass(frozen=True)
class Colors:
    """A theme. Blue, orange and gray are told apart with any color vision.

    Attributes:
        text, dim: words on the page, and those that matter less.
        line: axes, grids, what has no value.
        accent, other, bar: of what is drawn.
        card, ink: of what the pointer asks for, and its words.
    """

    text: str
    dim: str
    line: str
    accent: str
    other: str
    card: str
    ink: str
    bar: str


THEMES = {
    "light": Colors(
        text="#1f2328",
        dim="#667085",
        line="#e4e7ec",
        accent="#3b6fd4",
        other="#c2570c",
        card="#fbfcfd",
        ink="#1f2328",
        bar="#3b528b",
    ),
    "dark": Colors(
        text="#e6e8ec",
        dim="#98a2b3",
        line="#2a2f38",
        accent="#7ea6f4",
        other="#f0a35e",
        card="#171a20",
        ink="#e6e8ec",
        bar="#7ea6f4",
    ),
    # Words stand out from white and from JupyterLab's black by a factor above 4, marks above 3.
    "either": Colors(
        text="#747c8a",
        dim="#747c8a",
        line="rgba(128,136,148,0.3)",
        accent="#4a80e0",
        other="#cf6b1e",
        card="#22262e",
        ink="#e6e8ec",
        bar="#4a80e0",
    ),
}


def base_layout(colors: Colors, width: int, height: int) -> go.Layout:
    """Return the layout that every figure starts from: margins in pixels, nothing superfluous."""
    return go.Layout(
        template="none",
        width=width,
        height=height,
        autosize=False,
        margin={"l": 52, "r": 12, "t": 22, "b": 40, "pad": 0, "autoexpand": False},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": colors.text},
        showlegend=False,
        hoverlabel={"bgcolor": colors.card, "font": {"color": colors.ink, "size": 12}},
        xaxis=axis(colors),
        yaxis=axis(colors, showline=False),
        legend={"font": {"size": 11, "color": colors.dim}},
    )


def axis(colors: Colors, **changes: Any) -> dict[str, Any]:
    """Return an axis in the house's look, with `changes`."""
    return {
        "showgrid": False,
        "zeroline": False,
        "linecolor": colors.line,
        "gridcolor": colors.line,
        "showline": True,
        # Invisible ticks: they only hold the labels off the axis.
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(0,0,0,0)",
        "tickfont": {"size": 11, "color": colors.dim},
        "title": {"font": {"size": 11, "color": colors.dim}, "standoff": 6},
        "zerolinecolor": colors.line,
        "fixedrange": True,
    } | changes


def color_bar(colors: Colors, title: str) -> dict[str, Any]:
    """Return a slim color bar as high as the map."""
    return {
        "title": {"text": title, "font": {"size": 11, "color": colors.dim}},
        "x": 1,
        "thickness": 8,
        "len": 1,
        "outlinewidth": 0,
        "ticks": "",
        "nticks": 4,
        "tickfont": {"size": 11, "color": colors.dim},
        "xpad": 8,
        "ypad": 0,
    }


def note(
    text: str,
    colors: Colors,
    *,
    x: float,
    y: float,
    xanchor: str | None = None,
    above: bool = False,
) -> dict[str, Any]:
    """Return a small line of text at a place in the plot, (0, 0) to (1, 1)."""
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": xanchor or ("right" if x == 1 else "center"),
        "yanchor": "bottom" if above else "top",
        "showarrow": False,
        "font": {"size": 11, "color": colors.dim},
    }


def heading(text: str, colors: Colors, *, x: float = 0, y: float = 1) -> dict[str, Any]:
    """Return the name of a plot, above its upper left corner."""
    font = {"size": 12, "color": colors.text}
    return note(text, colors, x=x, y=y, xanchor="left", above=True) | {"font": font}


def show_legend(figure: go.Figure) -> None:
    """Put a legend above the plot, to the left, and leave room for the lines that it takes."""
    entries = [trace.name for trace in figure.data if trace.showlegend is not False]
    margin = figure.layout.margin
    needed = sum(_LEGEND_MARK + LETTER * len(name) for name in entries)
    lines = 1 if needed <= figure.layout.width - margin.l - margin.r else 2
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        legend_itemwidth=30,
        margin_t=9 + 19 * lines,
    )


def room_for_text(width: float, letters: int) -> float:
    """Return how much longer than its longest bar an axis of `width` pixels has to be.

    Behind that bar there is then room for a text of so many letters; a third of the axis stays
    with the bar, however narrow it is.
    """
    return width / max(width - 7 * letters - 12, width / 3)


def plain(text: str) -> str:
    """Return text from outside as plotly shows it letter by letter: it reads tags as markup."""
    return html.escape(text, quote=False)


def tick_step(count: int) -> int:
    """Return the distance of ticks that gives at most a dozen of them."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 500) if count <= 12 * step)


def rounded_up(value: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 5, 7 × 10ⁿ: an axis that moves seldom while ΔW grows."""
    power = 10 ** math.floor(math.log10(value))
    return next(m * power for m in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0) if value <= m * power)


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Return range and ticks of a logarithmic axis that holds `low` to `high`, both positive.

    Powers of ten, with 2 and 5 times them where there would be fewer than three.
    """
    start, end = math.log10(low), math.log10(high)
    # At least a factor of two, so that a round number lies within.
    pad = max(0.06 * (end - start), (math.log10(2) - (end - start)) / 2)
    start, end = start - pad, end + pad
    for factors in ((1,), (1, 2, 5), tuple(range(1, 10))):
        ticks = [f * 10.0**e for e in range(math.floor(start), math.ceil(end)) for f in factors]
        ticks = [tick for tick in ticks if start <= math.log10(tick) <= end]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: math.ceil(len(ticks) / 7)]
    return {
        "type": "log",
        "range": [start, end],
        "tickvals": ticks,
        "ticktext": [f"{tick:.10g}" if tick < 1e5 else f"{tick:.0e}" for tick in ticks],
    }


def plotly_js() -> str:
    """Return plotly.js itself, about 5 MB, for a page that needs no network."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
