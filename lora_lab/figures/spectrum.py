"""Singular values of ΔW: alone, and beside those of W₀."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lora_lab._util.format import format_number
from lora_lab.analysis.site_view import SiteView
from lora_lab.analysis.spectrum import SpectrumView
from lora_lab.figures._base import (
    MOST_POINTS,
    THEMES,
    Figure,
    Theme,
    base_layout,
    log_axis,
    note,
    rounded_up,
    show_legend,
    tick_step,
)

_ROUNDING = 1e-6


def spectrum_figure(
    view: SiteView, *, theme: Theme = "either", width: int = 350, height: int = 190
) -> go.Figure:
    """Draw ΔW's singular values as bars, strongest first."""
    colors = THEMES[theme]
    figure = Figure(
        go.Bar(
            marker={"color": colors.bar, "line": {"width": 0}},
            hovertemplate="σ<sub>%{x}</sub> = %{y:.3g}<extra></extra>",
        ),
        base_layout(colors, width, height),
    )
    figure.update_layout(bargap=0.3)
    figure.update_xaxes(title_text="direction of ΔW", dtick=1)
    figure.update_yaxes(
        showgrid=True,
        zeroline=True,
    )
    update_spectrum(figure, view, theme)
    return figure


def update_spectrum(figure: Any, view: SiteView, theme: Theme = "either") -> None:
    """Put a new view into a spectrum figure, in place; for a live one in `batch_update()`."""
    s = view.singular_values[:MOST_POINTS]
    bars = figure.data[0]
    bars.x = np.arange(1, len(s) + 1, dtype=np.int32)
    bars.y = s.astype(np.float32)
    bars.marker.color = THEMES[theme].bar
    largest = float(s[0]) if len(s) else 0.0
    figure.layout.xaxis.dtick = tick_step(len(s))
    figure.layout.xaxis.range = [0.4, max(len(s), 3) + 0.6]
    top = rounded_up(largest) if largest > 0 else 1.0
    unit, power = _unit(top)
    figure.layout.yaxis.range = [0, top]
    figure.layout.yaxis.tickvals = [0, top / 2, top]
    figure.layout.yaxis.ticktext = [f"{tick / unit:.3g}" for tick in (0, top / 2, top)]
    figure.layout.yaxis.title.text = f"singular value σ{power}"
    text = f"σ₁ = {format_number(largest)}" if largest > 0 else "ΔW is zero: nothing is learned yet"
    figure.layout.annotations = [note(text, THEMES[theme], x=0.99, y=0.98, xanchor="right")]


def _unit(top: float) -> tuple[float, str]:
    """Return what an axis up to `top` counts in, and how its title says so.

    Small numbers would be long, and reach into the title.
    """
    if 0.1 <= top < 1e4:
        return 1.0, ""
    exponent = 3 * math.floor(math.log10(top) / 3)
    return 10.0**exponent, f" / 10<sup>{exponent}</sup>".replace("-", "−")


def spectrum_against_base_figure(
    view: SpectrumView, *, theme: Theme = "either", width: int = 400, height: int = 240
) -> go.Figure:
    """Draw ΔW's singular values beside W₀'s strongest, on a logarithmic axis.

    The dotted line is the largest singular value of a random matrix of W₀'s shape and norm. Values
    of ΔW below a millionth of the largest drawn are rounding, and are left out.
    """
    colors = THEMES[theme]
    figure = Figure(layout=base_layout(colors, width, height))
    lines = (
        ("W₀", view.weight, colors.other, "diamond"),
        ("ΔW", view.delta, colors.accent, "circle"),
    )
    largest = max([float(s[0]) for _, s, _, _ in lines if len(s)] + [view.edge])
    smallest, count = view.edge, 1
    for name, values, color, symbol in lines:
        shown = values[:MOST_POINTS].astype(np.float32)
        shown = shown[shown > _ROUNDING * largest]
        count = max(count, len(shown))
        smallest = min([smallest, *shown[-1:].tolist()])
        figure.add_scatter(
            x=np.arange(1, len(shown) + 1, dtype=np.int32),
            y=shown,
            name=name,
            mode="lines+markers",
            line={"color": color, "width": 1.5},
            marker={"color": color, "size": 5, "symbol": symbol},
            hovertemplate=f"σ<sub>%{{x}}</sub> of {name} = %{{y:.3g}}<extra></extra>",
        )
    ends = [0.4, max(count, 3) + 0.6]
    figure.add_scatter(
        x=np.array(ends, np.float32),
        y=np.full(2, view.edge, np.float32),
        name="edge of noise",
        mode="lines",
        line={"color": colors.dim, "width": 1, "dash": "dot"},
        hovertemplate="largest σ of a random matrix like W₀: %{y:.3g}<extra></extra>",
    )
    show_legend(figure)
    figure.update_xaxes(title_text="direction", range=ends, dtick=tick_step(count))
    figure.update_yaxes(title_text="singular value σ", showgrid=True)
    if smallest > 0:
        figure.update_yaxes(**log_axis(smallest, largest))
    if not len(view.delta) or not view.delta[0]:
        text = "ΔW is zero: nothing is learned yet"
        figure.add_annotation(note(text, colors, x=0.02, y=0.02, xanchor="left", above=True))
    return figure
