"""The training loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lora_lab.figures._base import MOST_POINTS, THEMES, Figure, Theme, base_layout
from lora_lab.tasks.metrics import NATS

_FEW = 24  # points of which no mean is drawn


def loss_figure(
    losses: Sequence[tuple[int, float]],
    *,
    theme: Theme = "either",
    width: int = 640,
    height: int = 220,
    unit: str = NATS,
) -> go.Figure:
    """Draw the training loss: every step faintly, and the mean of the steps around it.

    Too few for a mean, below 24, they are drawn in full, each with a mark.

    Args:
        losses: (step, loss); above 500 points, evenly spaced ones are drawn.
        theme: of the page.
        width: pixels.
        height: pixels.
        unit: of the losses.
    """
    colors = THEMES[theme]
    steps, values = _thinned(losses)
    window = len(values) // _FEW * 2 + 1
    few = window == 1
    figure = Figure(layout=base_layout(colors, width, height))
    figure.add_scatter(
        x=steps,
        y=values,
        mode="lines+markers" if few else "lines",
        name="each step",
        line={"color": colors.accent, "width": 2 if few else 1},
        opacity=1 if few else 0.35,
        hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
    )
    if not few:
        figure.add_scatter(
            x=steps,
            y=_running_mean(values, window),
            mode="lines",
            name=f"mean of {window} points",
            line={"color": colors.accent, "width": 2},
            hovertemplate="mean %{y:.3f}<extra></extra>",
        )
    figure.update_layout(
        hovermode="x unified",
        showlegend=not few,
        legend={"orientation": "h", "x": 1, "y": 1.02, "xanchor": "right", "yanchor": "bottom"},
    )
    figure.update_xaxes(title_text="optimizer step", nticks=8, tickformat=",d")
    figure.update_yaxes(title_text=f"loss, {unit}", showgrid=True, nticks=5, tickformat=".3~g")
    return figure


def _thinned(losses: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    points = np.array(losses, np.float64).reshape(-1, 2)
    if len(points) > MOST_POINTS:
        points = points[np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]
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
