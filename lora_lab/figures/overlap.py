"""How directions lie against each other: cosines and subspaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from lora_lab._util.format import format_number
from lora_lab.analysis.site_view import SiteView
from lora_lab.figures._base import (
    BAR_MARGIN,
    MOST_POINTS,
    THEMES,
    Figure,
    Theme,
    base_layout,
    color_bar,
    note,
    tick_step,
)

_OVERLAP_ENDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def overlap_figure(
    view: SiteView, *, theme: Theme = "either", width: int = 400, height: int = 190
) -> go.Figure:
    """Draw the squared cosines of ΔW's directions with W₀'s strongest as a heat map."""
    colors = THEMES[theme]
    figure = Figure(
        go.Heatmap(
            colorscale="Viridis",
            zmin=0,
            xgap=1,
            ygap=1,
            hoverongaps=False,
            hovertemplate="u<sub>%{y}</sub> · w<sub>%{x}</sub>: %{z:.2g}<extra></extra>",
            colorbar=color_bar(colors, "cos²"),
        ),
        base_layout(colors, width, height),
    )
    figure.update_layout(plot_bgcolor=colors.line, margin_r=BAR_MARGIN)
    figure.update_xaxes(title_text="direction of W₀", showline=False)
    figure.update_yaxes(title_text="direction of ΔW", showline=False)
    update_overlap(figure, view, theme)
    return figure


def update_overlap(figure: Any, view: SiteView, theme: Theme = "either") -> None:
    """Put a new view into an overlap figure, in place; for a live one in `batch_update()`.

    The color scale ends at one of eight round numbers, so that it rarely moves.
    """
    shown = view.overlap[: max(1, MOST_POINTS // view.overlap.shape[1])]
    cells = figure.data[0]
    cells.x = np.arange(1, shown.shape[1] + 1, dtype=np.int32)
    cells.y = np.arange(1, shown.shape[0] + 1, dtype=np.int32)
    cells.z = shown.astype(np.float32)
    largest = float(np.nanmax(shown)) if np.isfinite(shown).any() else 0.0
    top = next((end for end in _OVERLAP_ENDS if largest <= end), 1.0)
    cells.zmax = top  # not to be read back: inside `batch_update` it still has its old value
    cells.colorbar.tickvals = [0, top / 2, top]
    figure.layout.xaxis.range = [0.5, shown.shape[1] + 0.5]
    figure.layout.xaxis.dtick = tick_step(shown.shape[1])
    figure.layout.yaxis.range = [shown.shape[0] + 0.5, 0.5]
    figure.layout.yaxis.dtick = tick_step(shown.shape[0])
    colors = THEMES[theme]
    notes = [
        note(f"random level {format_number(view.random_overlap)}", colors, x=1, y=1.0, above=True)
    ]
    if not np.isfinite(shown).any():
        notes.append(note("ΔW is zero: it has no directions", colors, x=0.5, y=0.5))
    elif len(shown) < len(view.overlap):
        text = f"first {len(shown)} of {len(view.overlap)} directions"
        notes.append(note(text, colors, x=0, y=1.0, xanchor="left", above=True))
    figure.layout.annotations = notes
