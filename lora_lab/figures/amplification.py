"""Table 7 for every site: how much of W₀ lies along ΔW's directions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lora_lab._util.format import format_number
from lora_lab.analysis.amplify import SiteAmplification
from lora_lab.figures._base import (
    THEMES,
    Figure,
    Theme,
    base_layout,
    log_axis,
    note,
    plain,
    show_legend,
)
from lora_lab.figures._site_axis import site_axis


def amplification_figure(
    rows: Sequence[SiteAmplification],
    *,
    theme: Theme = "either",
    width: int = 640,
    height: int = 280,
) -> go.Figure:
    """Draw ‖UᵀW₀V‖_F of every site, on a logarithmic axis.

    Three lines: U and V are W₀'s own strongest directions, ΔW's, or random ones (the mean of the
    draws; a site's text under the mouse has their spread and the analytic level). A zero ΔW has no
    directions, and its site stays empty.
    """
    colors = THEMES[theme]
    axis = site_axis(rows)
    drawn = [row if row.r else None for row in rows]
    figure = Figure(layout=base_layout(colors, width, height))
    lines = (
        ("W₀'s own", "along_own", colors.other, "diamond", _own_text),
        ("ΔW's", "along_delta", colors.accent, "circle", _delta_text),
        ("random", "along_random", colors.dim, "square", _random_text),
    )
    dot = axis.dot_size(figure)
    largest, smallest = 0.0, np.inf
    for name, field, color, symbol, text in lines:
        values = [getattr(row, field) if row else np.nan for row in drawn]
        positive = [value for value in values if value > 0]
        largest, smallest = max([largest, *positive]), min([smallest, *positive])
        figure.add_scatter(
            x=axis.places,
            # A logarithmic axis has no place for zero.
            y=axis.spread(value if value > 0 else np.nan for value in values),
            name=name,
            mode="lines+markers",
            connectgaps=False,
            line={"color": color, "width": 1},
            marker={"color": color, "size": dot, "symbol": symbol, "line": {"width": 0}},
            customdata=axis.texts(text(row) if row else "" for row in drawn),
            hovertemplate="%{customdata}<extra></extra>",
        )
    show_legend(figure)
    figure.update_yaxes(title_text="‖UᵀW₀V‖<sub>F</sub>", showgrid=bool(largest))
    if largest:
        figure.update_yaxes(**log_axis(smallest, largest))
    else:
        empty = "ΔW is zero: it has no directions" if rows else "no matrix has an adapter"
        figure.add_annotation(note(empty, colors, x=0.5, y=0.5))
        figure.update_yaxes(range=[0, 1], showticklabels=False)
    axis.dress(figure, colors)
    return figure


def _delta_text(row: SiteAmplification) -> str:
    return (
        f"{plain(row.name)}<br>along ΔW's {row.r} directions: {format_number(row.along_delta)}"
        f"<br>‖ΔW‖ = {format_number(row.delta_norm)}, amplification {format_number(row.factor)}"
    )


def _own_text(row: SiteAmplification) -> str:
    return (
        f"{plain(row.name)}<br>along W₀'s own first {row.r}: {format_number(row.along_own)}"
        f"<br>‖W₀‖ = {format_number(row.weight_norm)}"
    )


def _random_text(row: SiteAmplification) -> str:
    spread = f" ± {format_number(row.random_spread)}" if np.isfinite(row.random_spread) else ""
    return (
        f"{plain(row.name)}<br>along {row.r} random directions: "
        f"{format_number(row.along_random)}{spread}<br>expected {format_number(row.random_level)}"
    )
