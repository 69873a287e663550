"""How much an adapter can hold against how much its data has to say."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from lora_lab._util.format import format_share
from lora_lab.analysis.capacity import Capacity
from lora_lab.captions.delta_w import bits_text
from lora_lab.figures._base import THEMES, Figure, Theme, base_layout, room_for_text


def capacity_figure(
    capacity: Capacity, *, theme: Theme = "either", width: int = 400, height: int = 120
) -> go.Figure:
    """Draw the adapter's capacity and the data's content as two bars on one scale."""
    colors = THEMES[theme]
    bars = [("adapter", capacity.bits, bits_text(capacity.bits)), ("data", 0.0, "not known yet")]
    if capacity.data_bits is not None:
        share = f" ({format_share(capacity.data_bits, capacity.bits)})"
        bars[1] = ("data", capacity.data_bits, bits_text(capacity.data_bits) + share)
    largest = max(bits for _, bits, _ in bars)
    prefix, size = next(
        (pair for pair in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)) if largest >= pair[1]),
        ("", 1.0),
    )
    figure = Figure(
        go.Bar(
            orientation="h",
            x=np.array([bits / size for _, bits, _ in bars], np.float32),
            y=[name for name, _, _ in bars],
            customdata=[text for _, _, text in bars],
            marker={"color": [colors.bar, colors.other], "line": {"width": 0}},
            hovertemplate="%{y}: %{customdata}<extra></extra>",
        ),
        base_layout(colors, width, height),
    )
    figure.update_layout(
        bargap=0.35,
        margin={"l": 62, "t": 8},
        annotations=[
            {
                "x": bits / size,
                "y": name,
                "text": text,
                "showarrow": False,
                "xanchor": "left",
                "xshift": 6,
                "font": {"color": colors.text, "size": 12},
            }
            for name, bits, text in bars
        ],
    )
    letters = max(len(text) for _, bits, text in bars if bits >= largest / 2)
    figure.update_xaxes(
        title_text=f"{prefix}bit",
        range=[0, (largest or 1) / size * room_for_text(width - 74, letters)],
        nticks=5,
    )
    figure.update_yaxes(categoryorder="array", categoryarray=["data", "adapter"])
    return figure
