"""Layer × role maps that move with training."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from lora_lab.analysis.steps import StepMaps
from lora_lab.figures._base import (
    BAR_MARGIN,
    LETTER,
    THEMES,
    Colors,
    Figure,
    Theme,
    axis,
    base_layout,
    color_bar,
    heading,
    note,
    plain,
    rounded_up,
    tick_step,
)

_SIDE_BY_SIDE = 640  # pixels of width from which the two maps stand side by side
_ROW = 20  # pixels of a role
_TOP, _BOTTOM = 26, 44  # pixels above and below a map
_SLIDER = 74  # pixels
_MOST_FRAMES = 60


def step_maps_figure(
    maps: StepMaps,
    index: int,
    *,
    standalone: bool = False,
    theme: Theme = "either",
    width: int = 640,
    height: int | None = None,
) -> go.Figure:
    """Draw effective ranks and ‖ΔW‖/‖W₀‖ of every site at one step.

    The color scales are those of the whole run, so that maps of different steps compare. Sites
    without an adapter stay empty.

    Args:
        maps: of a run.
        index: which of `maps.steps` is shown; −1 is the last.
        standalone: with a slider over the steps, at most 60 of them, that needs no Python; it
            stands at the step that is shown, the nearest to `index` among them.
        theme: of the page.
        width: pixels; from 640 the two maps stand side by side.
        height: pixels; as the number of roles asks, by default.
    """
    colors, index = THEMES[theme], range(len(maps.steps))[index]
    if standalone:
        index = min(_frames(maps), key=lambda frame: abs(frame - index))
    beside = width >= _SIDE_BY_SIDE
    bottom = _BOTTOM + _SLIDER * standalone
    if height is None:
        map_height = max(60, _ROW * len(maps.roles))
        height = bottom + (_TOP + map_height) * (1 if beside else 2)
    figure = Figure(layout=base_layout(colors, width, height))
    left = 18 + math.ceil(LETTER * max(map(len, maps.roles), default=0))
    figure.update_layout(
        plot_bgcolor=colors.line,
        margin={"l": left, "r": BAR_MARGIN, "t": _TOP, "b": bottom},
    )
    places = _places(width - left - BAR_MARGIN, height - _TOP - bottom, beside=beside)
    for i, map_ in enumerate((_ranks(maps), _sizes(maps))):
        _add_map(figure, maps, map_, places[i], colors, "" if i == 0 else "2")
    inner = figure.layout.yaxis2 if beside else figure.layout.xaxis
    inner.update(showticklabels=False, title_text="")
    figure.add_annotation(note("", colors, x=places[0].x[1], y=1, xanchor="right", above=True))
    if standalone:
        figure.update_layout(sliders=[_slider(maps, index, colors)])
    update_step_maps(figure, maps, index)
    return figure


def update_step_maps(figure: Any, maps: StepMaps, index: int) -> None:
    """Show another step, in place; for a live figure in `batch_update()`."""
    for cells, values in zip(figure.data, (maps.effective_ranks, maps.relative_sizes), strict=True):
        cells.z = values[index].astype(np.float32)
    # A slider names the step itself.
    if not figure.layout.sliders:
        figure.layout.annotations[-1].text = f"step {int(maps.steps[index]):,}"


class _Place(NamedTuple):
    """Where a map lies in the plot, from 0 to 1."""

    x: tuple[float, float]
    y: tuple[float, float]


class _Map(NamedTuple):
    title: str
    text: str
    ends: tuple[float, float]
    tickformat: str


def _ranks(maps: StepMaps) -> _Map:
    text = "effective rank %{z:.2f} of %{customdata[2]}"
    return _Map("effective rank", text, (1, float(maps.ranks.max(initial=2))), "~g")


def _sizes(maps: StepMaps) -> _Map:
    largest = float(np.nan_to_num(maps.relative_sizes).max(initial=0))
    top = rounded_up(largest) if largest > 0 else 1.0
    return _Map("‖ΔW‖ / ‖W₀‖", "‖ΔW‖ is %{z:.2%} of ‖W₀‖", (0, top), "~p")


def _places(width: float, height: float, *, beside: bool) -> tuple[_Place, _Place]:
    """Return the maps' places in a plot of that many pixels."""
    if beside:
        map_width = (width - BAR_MARGIN - 8) / 2 / width
        return _Place((0, map_width), (0, 1)), _Place((1 - map_width, 1), (0, 1))
    map_height = (height - _TOP) / 2 / height
    return _Place((0, 1), (1 - map_height, 1)), _Place((0, 1), (0, map_height))


def _add_map(
    figure: go.Figure, maps: StepMaps, map_: _Map, place: _Place, colors: Colors, number: str
) -> None:
    """Add one map without its values; `number` is "" or "2"."""
    low, high = map_.ends
    figure.add_heatmap(
        x=np.arange(len(maps.layers), dtype=np.int32),
        y=np.arange(len(maps.roles), dtype=np.int32),
        xaxis=f"x{number}",
        yaxis=f"y{number}",
        customdata=[
            [
                [plain(role), plain(layer), str(rank)]
                for layer, rank in zip(maps.layers, row, strict=True)
            ]
            for role, row in zip(maps.roles, maps.ranks.tolist(), strict=True)
        ],
        colorscale="Viridis",
        zmin=low,
        zmax=high,
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate=f"layer %{{customdata[1]}} %{{customdata[0]}}<br>{map_.text}<extra></extra>",
        colorbar=color_bar(colors, "")
        | {
            "x": place.x[1],
            "y": sum(place.y) / 2,
            "len": place.y[1] - place.y[0],
            "tickvals": [low, (low + high) / 2, high],
            "tickformat": map_.tickformat,
        },
    )
    step = tick_step(len(maps.layers))
    figure.layout[f"xaxis{number}"] = axis(
        colors,
        domain=place.x,
        anchor=f"y{number}",
        tickvals=list(range(0, len(maps.layers), step)),
        ticktext=[plain(layer) for layer in maps.layers[::step]],
        range=[-0.5, len(maps.layers) - 0.5],
        showline=False,
    )
    figure.layout[f"xaxis{number}"].title.text = "layer"
    figure.layout[f"yaxis{number}"] = axis(
        colors,
        domain=place.y,
        anchor=f"x{number}",
        tickvals=list(range(len(maps.roles))),
        ticktext=[plain(role) for role in maps.roles],
        range=[len(maps.roles) - 0.5, -0.5],
        showline=False,
    )
    figure.add_annotation(heading(map_.title, colors, x=place.x[0], y=place.y[1]))


def _slider(maps: StepMaps, index: int, colors: Colors) -> dict[str, Any]:
    kept = _frames(maps)
    return {
        "active": kept.index(index),
        "steps": [
            {
                "label": f"{int(maps.steps[i]):,}",
                "method": "restyle",
                "args": [{"z": [_cells(maps.effective_ranks[i]), _cells(maps.relative_sizes[i])]}],
            }
            for i in kept
        ],
        "currentvalue": {"prefix": "step ", "font": {"size": 12, "color": colors.text}},
        "font": {"size": 11, "color": colors.dim},
        "pad": {"t": _BOTTOM - 4},
        "ticklen": 3,
        "minorticklen": 0,
        "tickcolor": colors.line,
        "bordercolor": colors.line,
        "bgcolor": colors.accent,
        "activebgcolor": colors.accent,
    }


def _frames(maps: StepMaps) -> list[int]:
    """Return which of the steps a slider has, the first and the last among them."""
    count = len(maps.steps)
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, _MOST_FRAMES)).tolist()})


def _cells(values: np.ndarray) -> list[list[float | None]]:
    """Return values as a slider's text holds them: four digits, null for what is not there."""
    return [[float(f"{v:.4g}") if v == v else None for v in row] for row in values.tolist()]
