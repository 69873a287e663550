"""φ maps: the subspaces that two updates share, or an update and W₀."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.colors
import plotly.graph_objects as go

from lora_lab._util.format import format_number
from lora_lab.analysis.overlaps import OverlapMap
from lora_lab.figures._base import (
    BAR_MARGIN,
    THEMES,
    Colors,
    Figure,
    Theme,
    base_layout,
    color_bar,
    heading,
    note,
    plain,
    tick_step,
)

_LEVELS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_MOST_LEVELS = 3
_LEVEL_LABEL = 34  # pixels
# Finer where φ is small: there lies what is to be told from chance.
_SCALE = [((i / 9) ** 2, color) for i, color in enumerate(plotly.colors.sequential.Viridis)]


def phi_figure(
    overlap: OverlapMap,
    *,
    excess: bool = False,
    theme: Theme = "either",
    width: int = 400,
    height: int = 260,
) -> go.Figure:
    """Draw φ(i, j) of the first i directions of one matrix with the first j of the other.

    White lines are where unrelated subspaces would reach the level written at their ends: φ is to
    be read against these. With `excess` the random level is taken off, and 0 is chance.

    Args:
        overlap: φ, its random level and spread.
        excess: draw (φ − random)/(1 − random) instead of φ.
        theme: of the page.
        width: pixels.
        height: pixels.
    """
    colors = THEMES[theme]
    values = (overlap.excess if excess else overlap.values).astype(np.float32)
    rows, columns = values.shape
    layout = base_layout(colors, width, height)
    figure = Figure(_heat_map(overlap, values, colors), layout)
    figure.update_layout(plot_bgcolor=colors.line, margin_r=BAR_MARGIN, margin_t=38)
    figure.update_xaxes(
        title_text=f"first j directions of {plain(overlap.second)}",
        range=[0.5, columns + 0.5],
        dtick=tick_step(columns),
        showline=False,
    )
    figure.update_yaxes(
        title_text=f"first i of {plain(overlap.first)}",
        range=[rows + 0.5, 0.5],
        dtick=tick_step(rows),
        showline=False,
    )
    if not np.isfinite(values).any():
        figure.add_annotation(note("ΔW is zero: it has no directions", colors, x=0.5, y=0.5))
    elif excess:
        figure.add_annotation(heading("φ above chance (0: unrelated)", colors))
    else:
        _draw_random_level(figure, overlap.random, colors)
    return figure


def _heat_map(overlap: OverlapMap, values: np.ndarray, colors: Colors) -> go.Heatmap:
    rows, columns = values.shape
    return go.Heatmap(
        x=np.arange(1, columns + 1, dtype=np.int32),
        y=np.arange(1, rows + 1, dtype=np.int32),
        z=values,
        customdata=np.stack(
            [overlap.values, overlap.random, overlap.spread], axis=-1, dtype=np.float32
        ),
        colorscale=_SCALE,
        zmin=0,
        zmax=1,
        hoverongaps=False,
        hovertemplate=(
            "first %{y} with first %{x}<br>φ = %{customdata[0]:.3f}"
            "<br>random %{customdata[1]:.3f} ± %{customdata[2]:.3f}<extra></extra>"
        ),
        colorbar=color_bar(colors, "") | {"tickvals": [0, 0.2, 0.5, 1]},
    )


def _draw_random_level(figure: go.Figure, random: np.ndarray, colors: Colors) -> None:
    """Draw lines of equal random level, with the level at their ends.

    The level grows with max(i, j): its lines are right angles about the first directions.
    """
    wide = random.shape[1] >= random.shape[0]
    along = random[0] if wide else random[:, 0]
    levels = [level for level in _LEVELS if random.min() < level <= random.max()]
    for level in levels[-_MOST_LEVELS:]:
        # Between the last direction below the level and the first that reaches it.
        place = int(np.searchsorted(along, level)) + 0.5
        end = min(place, min(random.shape) + 0.5)
        points = [(place, 0.5), (place, end), (0.5, end)][: 3 if end == place else 2]
        path = "M" + "L".join(f"{x},{y}" if wide else f"{y},{x}" for x, y in points)
        # White on a dark rim is seen on every color of the scale.
        for line in (
            {"color": "rgba(0,0,0,0.4)", "width": 3},
            {"color": "#ffffff", "width": 1.2},
        ):
            figure.add_shape(type="path", path=path, line=line)
        figure.add_annotation(_level_label(level, place, colors, wide=wide))
    if not wide:
        figure.update_layout(margin_r=BAR_MARGIN + _LEVEL_LABEL)
        figure.data[0].colorbar.xpad = 8 + _LEVEL_LABEL
    text = f"φ; random level up to {format_number(float(random.max()))}"
    # Above the levels, which have the line next to a wide map.
    figure.add_annotation(heading(text, colors) | {"yshift": 13 if wide and levels else 0})


def _level_label(level: float, place: float, colors: Colors, *, wide: bool) -> dict[str, Any]:
    label = note(f"{level:g}", colors, x=0, y=0)
    if wide:
        return label | {"x": place, "xref": "x", "y": 1, "xanchor": "center", "yanchor": "bottom"}
    return label | {
        "x": 1,
        "xanchor": "left",
        "xshift": 3,
        "y": place,
        "yref": "y",
        "yanchor": "middle",
    }
