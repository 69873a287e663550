"""How long the examples of a task are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from lora_lab.figures._base import THEMES, Figure, Theme, base_layout, note

if TYPE_CHECKING:
    from lora_lab.tasks.look import Look


def lengths_figure(
    look: Look, *, theme: Theme = "either", width: int = 640, height: int = 200
) -> go.Figure:
    """Draw how many training examples have how many tokens, and where `max_length` lies."""
    colors, bars = THEMES[theme], look.histogram()
    middles = [(bar.start + bar.end) / 2 for bar in bars]
    figure = Figure(
        go.Bar(
            x=np.array(middles, np.float32),
            y=np.array([bar.examples for bar in bars], np.float32),
            width=[bar.end - bar.start + 1 for bar in bars],
            customdata=[f"{bar.start:,}–{bar.end:,} tokens: {bar.examples:,}" for bar in bars],
            marker={
                "color": [colors.other if look.is_over(bar) else colors.bar for bar in bars],
                "line": {"width": 0},
            },
            hovertemplate="%{customdata}<extra></extra>",
        ),
        base_layout(colors, width, height),
    )
    figure.update_xaxes(title_text="tokens an example", nticks=8, tickformat=",d")
    figure.update_yaxes(title_text="training examples", showgrid=True, nticks=5, tickformat=",d")
    if look.max_length <= look.would_do:
        at = look.max_length + 0.5
        figure.add_vline(x=at, line={"color": colors.dim, "width": 1, "dash": "dot"})
        label = note(f"max_length={look.max_length:,}", colors, x=at, y=1, above=True)
        figure.add_annotation({**label, "xref": "x", "xanchor": "center"})
    return figure
