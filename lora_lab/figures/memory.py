"""Memory, predicted and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from lora_lab._util.format import format_bytes
from lora_lab.budget.reading import MemoryReading
from lora_lab.figures._base import (
    THEMES,
    Colors,
    Figure,
    Theme,
    base_layout,
    room_for_text,
    show_legend,
)

if TYPE_CHECKING:
    from lora_lab.budget.costs import Budget, Memory

MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations")
_PART_COLOURS = dict(zip(MEMORY_PARTS, ("#5b7fc7", "#56b4b0", "#e3a13b", "#b07cc6"), strict=True))


def memory_figure(
    budget: Budget,
    reading: MemoryReading | None = None,
    *,
    theme: Theme = "either",
    width: int = 640,
    height: int = 190,
) -> go.Figure:
    """Draw memory as stacked bars: full fine-tuning, this plan, and the measured peak if any.

    The measured peak is in the same parts where the meter has told them apart.
    """
    colors = THEMES[theme]
    bars: dict[str, Memory | MemoryReading] = {
        "full fine-tuning": budget.full,
        "this plan": budget.adapted,
    }
    totals = {"full fine-tuning": budget.full.total, "this plan": budget.adapted.total}
    if reading is not None:
        totals["measured peak"] = reading.peak
        if any(getattr(reading, part) for part in MEMORY_PARTS):
            bars["measured peak"] = reading
    unit, size = _unit(max(totals.values()))
    figure = Figure(layout=base_layout(colors, width, height))
    for part in MEMORY_PARTS:
        amounts = [getattr(memory, part) for memory in bars.values()]
        figure.add_bar(
            name=part,
            orientation="h",
            y=list(bars),
            x=np.array(amounts, np.float64).astype(np.float32) / np.float32(size),
            customdata=[format_bytes(amount) for amount in amounts],
            marker={"color": _PART_COLOURS[part], "line": {"width": 0}},
            hovertemplate=f"{part}: %{{customdata}}<extra>%{{y}}</extra>",
        )
    if reading is not None and "measured peak" not in bars:
        figure.add_bar(
            orientation="h",
            y=["measured peak"],
            x=np.array([reading.peak / size], np.float32),
            customdata=[format_bytes(reading.peak)],
            marker={"color": colors.dim, "line": {"width": 0}},
            hovertemplate=f"{reading.kind}: %{{customdata}}<extra>%{{y}}</extra>",
            showlegend=False,
        )
    figure.update_layout(
        barmode="stack",
        bargap=0.35,
        margin_l=110,
        legend_traceorder="normal",
        annotations=[_total(label, total, size, colors) for label, total in totals.items()],
    )
    show_legend(figure)
    longest = max(totals.values())
    room = room_for_text(width - 122, len(format_bytes(longest)))
    figure.update_xaxes(title_text=unit, range=[0, longest / size * room], nticks=6)
    figure.update_yaxes(categoryorder="array", categoryarray=list(totals)[::-1], showline=False)
    return figure


def _total(label: str, total: int, size: int, colors: Colors) -> dict[str, Any]:
    """Return a bar's total, as a text behind its end."""
    return {
        "x": total / size,
        "y": label,
        "text": format_bytes(total),
        "showarrow": False,
        "xanchor": "left",
        "xshift": 6,
        "font": {"color": colors.text, "size": 12},
    }


def _unit(count: int) -> tuple[str, int]:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return unit, size
    return "B", 1
