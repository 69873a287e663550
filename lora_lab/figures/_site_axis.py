"""An axis with one place a site: role by role, and within a role layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from lora_lab.anatomy.blocks import Placed, stack_label
from lora_lab.figures._base import LETTER, Colors, plain

_LAYER_LABEL = 28  # pixels between two labels of layers, at least


@dataclass(frozen=True)
class SiteAxis:
    """Where sites stand along an axis; between two roles there is a gap of one place.

    Attributes:
        order: the site at each place, an index into what was given; −1 at a gap.
        layers: the layer at each place; None at a gap and for what is in no layer.
        groups: (label, first place, last place) of each role, with its stack where there are
            several.
    """

    order: tuple[int, ...]
    layers: tuple[int | None, ...]
    groups: tuple[tuple[str, int, int], ...]

    @property
    def places(self) -> np.ndarray:
        """(places,) int32, gaps included."""
        return np.arange(len(self.order), dtype=np.int32)

    def spread(self, values: Iterable[float]) -> np.ndarray:
        """Return (places,) float32: a value a site, NaN at gaps, so that lines end there."""
        return np.array([*values, math.nan], np.float32)[list(self.order)]

    def texts(self, values: Iterable[str]) -> list[str]:
        """Return a text a place, empty at gaps."""
        texts = [*values, ""]
        return [texts[i] for i in self.order]

    def dot_size(self, figure: go.Figure) -> float:
        """Return the diameter of dots that do not cover their neighbors, 3 to 6 pixels."""
        return min(6.0, max(3.0, self._pixels(figure)))

    def dress(self, figure: go.Figure, colors: Colors) -> None:
        """Give the figure's x axis the sites' labels, and lines between the roles."""
        pixels = self._pixels(figure)
        slanted = any(
            len(label) * LETTER > (last - first + 1.5) * pixels
            for label, first, last in self.groups
        )
        ticks = {(first + last) / 2: plain(label) for label, first, last in self.groups}
        numbered = not slanted and all(
            first == last or (last - first + 1) * pixels >= 2 * _LAYER_LABEL
            for _, first, last in self.groups
        )
        if numbered:
            ticks = self._numbered(pixels)
        longest = max((len(label) for label, _, _ in self.groups), default=0)
        labels_height = 0.7 * longest * LETTER + 10 if slanted else 14 * (1 + numbered)
        figure.update_layout(
            margin_b=math.ceil(26 + labels_height),
            shapes=[_upright(first - 1, colors) for _, first, _ in self.groups[1:]],
        )
        figure.update_xaxes(
            tickvals=list(ticks),
            ticktext=list(ticks.values()),
            tickangle=-45 if slanted else 0,
            range=[-0.9, len(self.order) - 0.1],
            title_text="layers, role by role" if numbered else "roles, each by layer",
        )

    def _pixels(self, figure: go.Figure) -> float:
        margin = figure.layout.margin
        width: float = figure.layout.width - margin.l - margin.r
        return width / max(1, len(self.order))

    def _numbered(self, pixels: float) -> dict[float, str]:
        """Return {place: text}: layers, and below them the roles."""
        ticks: dict[float, str] = {}
        step = _step(_LAYER_LABEL / pixels)
        for label, first, last in self.groups:
            for place in range(first, last + 1, step):
                layer = self.layers[place]
                ticks[place] = "" if layer is None else str(layer)
            centre = (first + last) / 2
            ticks[centre] = f"{ticks.get(centre, '')}<br>{plain(label)}"
        return ticks


def site_axis(sites: Sequence[Placed]) -> SiteAxis:
    """Sort sites into roles, in the order in which these first come, and by layer within."""
    several = len({site.stack for site in sites}) > 1
    groups: dict[tuple[str, str], list[int]] = {}
    for i, site in enumerate(sites):
        groups.setdefault((site.stack, site.role), []).append(i)
    order: list[int] = []
    spans = []
    for (stack, role), members in groups.items():
        label = f"{stack_label(stack)} {role}".strip() if several else role
        if order:
            order.append(-1)
        spans.append((label, len(order), len(order) + len(members) - 1))
        order += sorted(members, key=lambda i: (sites[i].layer is None, sites[i].layer or 0))
    layers = tuple(None if i < 0 else sites[i].layer for i in order)
    return SiteAxis(tuple(order), layers, tuple(spans))


def _step(least: float) -> int:
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step >= least)


def _upright(place: float, colors: Colors) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": place,
        "x1": place,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "layer": "below",
        "line": {"color": colors.line, "width": 1},
    }
