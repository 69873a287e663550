"""Layer × role maps: every site of a model at once."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from lora_lab.analysis.rank_map import RankMap
from lora_lab.figures._base import (
    BAR_MARGIN,
    THEMES,
    Figure,
    Theme,
    base_layout,
    color_bar,
    plain,
    tick_step,
)


def effective_rank_figure(
    ranks: RankMap, *, theme: Theme = "either", width: int = 400, height: int = 190
) -> go.Figure:
    """Draw the effective rank of every site as a map, layers from left to right, a role a row.

    Sites without an adapter stay empty.
    """
    colors = THEMES[theme]
    top = float(ranks.ranks.max(initial=2))
    cells = [
        [
            [plain(role), plain(layer), str(rank)]
            for layer, rank in zip(ranks.layers, row, strict=True)
        ]
        for role, row in zip(ranks.roles, ranks.ranks, strict=True)
    ]
    figure = Figure(
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
            colorbar={**color_bar(colors, "rank"), "tickvals": [1, (1 + top) / 2, top]},
        ),
        base_layout(colors, width, height),
    )
    step = tick_step(len(ranks.layers))
    widest = max(map(len, ranks.roles), default=0)
    figure.update_layout(plot_bgcolor=colors.line, margin_r=BAR_MARGIN, margin_l=18 + 7 * widest)
    figure.update_xaxes(
        title_text="layer",
        tickvals=list(range(0, len(ranks.layers), step)),
        ticktext=[plain(layer) for layer in ranks.layers[::step]],
        range=[-0.5, len(ranks.layers) - 0.5],
        showline=False,
    )
    figure.update_yaxes(
        tickvals=list(range(len(ranks.roles))),
        ticktext=[plain(role) for role in ranks.roles],
        range=[len(ranks.roles) - 0.5, -0.5],
        showline=False,
    )
    return figure
