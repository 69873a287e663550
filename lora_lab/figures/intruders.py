"""Intruder dimensions: which strong directions of W₀ + ΔW the base model does not know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lora_lab.analysis.intruders import IntruderCurve, SiteIntruders
from lora_lab.figures._base import (
    THEMES,
    Colors,
    Figure,
    Theme,
    axis,
    base_layout,
    heading,
    note,
    plain,
    show_legend,
)
from lora_lab.figures._site_axis import SiteAxis, site_axis

_SIDE_BY_SIDE = 560  # pixels of width from which two small plots stand side by side


def intruder_figure(
    rows: Sequence[SiteIntruders], *, theme: Theme = "either", width: int = 640, height: int = 280
) -> go.Figure:
    """Draw every site's strongest directions of W₀ + ΔW by how well W₀ knows them.

    A column of dots a site, one a direction, at its largest |cos| with W₀'s left singular
    vectors. Those below ε are intruders. The dotted line is where a random vector would lie.
    """
    colors = THEMES[theme]
    sites = site_axis(rows)
    figure = Figure(layout=base_layout(colors, width, height))
    dot = sites.dot_size(figure)
    for name, intruding, look in (
        ("known", False, {"color": colors.accent, "size": dot, "opacity": 0.55}),
        ("intruder", True, {"color": colors.other, "size": dot + 2, "symbol": "diamond"}),
    ):
        dots = _dots(rows, sites, intruding=intruding)
        figure.add_scatter(
            x=np.array([place for place, _, _ in dots], np.int32),
            y=np.array([cosine for _, cosine, _ in dots], np.float32),
            customdata=[text for _, _, text in dots],
            name=name,
            mode="markers",
            marker=look,
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=bool(dots),
        )
    places = sites.places.astype(np.float32)
    for name, field, dash in (("ε", "epsilon", "dash"), ("random", "random_line", "dot")):
        level = sites.spread(getattr(row, field) for row in rows)
        # A step a site, as its line belongs to the shape of its W₀.
        figure.add_scatter(
            # Half a place longer than the sites: a single one has a line, too.
            x=np.concatenate([places[:1] - 0.5, places, places[-1:] + 0.5]),
            y=np.concatenate([level[:1], level, level[-1:]]),
            name=name,
            mode="lines",
            line={"color": colors.text, "width": 1, "dash": dash, "shape": "hvh"},
            hovertemplate=f"{name} %{{y:.2f}}<extra></extra>",
            connectgaps=True,
        )
    show_legend(figure)
    figure.update_yaxes(
        title_text="largest |cos| with W₀", range=[0, 1.04], nticks=6, showgrid=True
    )
    if not rows:
        figure.add_annotation(note("no matrix has an adapter", colors, x=0.5, y=0.5))
    sites.dress(figure, colors)
    return figure


def intruder_curve_figure(
    curve: IntruderCurve,
    *,
    theme: Theme = "either",
    width: int = 640,
    height: int | None = None,
) -> go.Figure:
    """Draw what scaling the intruders by λ does: to the task, and to what the base model knew.

    Two plots, each with its own scale: side by side where the width allows, else one above the
    other.
    """
    colors = THEMES[theme]
    beside = width >= _SIDE_BY_SIDE
    figure = Figure(layout=base_layout(colors, width, height or (230 if beside else 400)))
    order = np.argsort(curve.factors)
    factors = curve.factors[order].astype(np.float32)
    plots = (
        ("loss on the task", curve.task_losses, colors.accent, math.nan),
        ("loss on the base model's text", curve.base_losses, colors.other, curve.base_reference),
    )
    for i, (title, losses, color, reference) in enumerate(plots):
        across = (0.56 * i, 0.44 + 0.56 * i) if beside else (0.0, 1.0)
        up = (0.0, 1.0) if beside else (0.6 - 0.6 * i, 1.0 - 0.6 * i)
        number = "" if i == 0 else "2"
        _add_axes(figure, colors, number, across, up, np.append(losses, reference))
        figure.add_scatter(
            x=factors,
            y=losses[order].astype(np.float32),
            xaxis=f"x{number}",
            yaxis=f"y{number}",
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"color": color, "size": 7},
            hovertemplate="λ = %{x:.2f}: %{y:.3f}<extra></extra>",
        )
        figure.add_annotation(heading(title, colors, x=across[0], y=up[1]))
        if math.isfinite(reference):
            _add_reference(figure, colors, number, reference)
    if not curve.count:
        figure.add_annotation(note("no intruder: nothing to scale", colors, x=0.02, y=0.98))
        figure.layout.annotations[-1].xanchor = "left"
    figure.update_layout(margin={"t": 30, "r": 34})
    return figure


def _add_axes(
    figure: go.Figure,
    colors: Colors,
    number: str,
    across: tuple[float, float],
    up: tuple[float, float],
    losses: np.ndarray,
) -> None:
    """Add the axes of one plot; `number` is "" or "2"."""
    finite = losses[np.isfinite(losses)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    # A curve that hardly moves shall look flat: no axis is shorter than 0.04 nats.
    pad = max(0.2 * (high - low), (0.04 - (high - low)) / 2)
    figure.layout[f"xaxis{number}"] = axis(
        colors,
        domain=across,
        anchor=f"y{number}",
        range=[-0.05, 1.05],
        tickvals=[0, 0.25, 0.5, 0.75, 1],
        ticktext=["removed", "¼", "½", "¾", "as trained"],
    )
    figure.layout[f"yaxis{number}"] = axis(
        colors,
        domain=up,
        anchor=f"x{number}",
        range=[low - pad, high + pad],
        nticks=5,
        tickformat=".2f",
        showgrid=True,
        showline=False,
    )
    figure.layout[f"xaxis{number}"].title.text = "intruders scaled by λ"
    figure.layout[f"yaxis{number}"].title.text = "nats per token"


def _add_reference(figure: go.Figure, colors: Colors, number: str, value: float) -> None:
    line = {"color": colors.dim, "width": 1, "dash": "dot"}
    figure.add_shape(
        type="line",
        x0=0,
        x1=1,
        xref=f"x{number} domain",
        y0=value,
        y1=value,
        yref=f"y{number}",
        line=line,
    )
    figure.add_annotation(
        text="the base model itself",
        x=1,
        xref=f"x{number} domain",
        xanchor="right",
        # Below the line there is no curve: no model writes the base model's text better than it.
        y=value,
        yref=f"y{number}",
        yanchor="top",
        showarrow=False,
        font={"size": 11, "color": colors.dim},
    )


def _dots(
    rows: Sequence[SiteIntruders], sites: SiteAxis, *, intruding: bool
) -> list[tuple[int, float, str]]:
    """Return (place, |cos|, text) of the directions that are intruders, or of the others."""
    dots = []
    for place, index in enumerate(sites.order):
        if index < 0:
            continue
        row = rows[index]
        for k in np.flatnonzero(row.intruder == intruding).tolist():
            text = (
                f"{plain(row.name)}<br>direction {k + 1}, σ = {row.singular_values[k]:.3g}"
                f"<br>largest |cos| {row.similarity[k]:.2f}, "
                f"among neighbors {row.window_similarity[k]:.2f}"
            )
            dots.append((place, float(row.similarity[k]), text))
    return dots
