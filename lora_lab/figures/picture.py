"""A figure as a picture, SVG: for pages whose scripts are blocked. plotly draws the figure itself.

It has what the figures of this package are made of: lines, dots, bars, maps, their axes, color bar,
legend, notes and lines of reference. Nothing in it can be clicked, and no text is markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from lora_lab.figures._base import LETTER
from lora_lab.figures._picture_axes import Axis
from lora_lab.figures._picture_marks import (
    color_of,
    dash,
    image,
    line,
    mark,
    number,
    plain_text,
    rect,
    scatter,
    words,
)

_ANCHORS = {"left": "start", "center": "middle", "right": "end"}
_DOWN = {"top": 0.95, "bottom": -0.3}  # of a letter's height, from a text's place to its baseline


def picture(figure: Any) -> str:
    """Return a plotly figure of this package as one `<svg>` element.

    Args:
        figure: what a function of `lora_lab.figures` returns; its layout has a width and a height.
    """
    return _Picture(figure).draw()


class _Picture:
    def __init__(self, figure: Any) -> None:
        self.figure, self.layout = figure, figure.layout
        margin = self.layout.margin
        self.width, self.height = float(self.layout.width), float(self.layout.height)
        self.left, self.top = float(margin.l), float(margin.t)
        self.right, self.bottom = self.width - margin.r, self.height - margin.b
        self.axes: dict[str, Axis] = {}
        for trace in figure.data:
            for name in (trace.xaxis or "x", trace.yaxis or "y"):
                if name not in self.axes:
                    self.axes[name] = self._axis(name)

    def draw(self) -> str:
        parts = [
            *self._grounds(),
            *self._grids(),
            *(part for trace in self.figure.data for part in self._trace(trace)),
            *map(self._shape, self.layout.shapes),
            *self._axes_and_titles(),
            *self._legend(),
            *filter(None, map(self._annotation, self.layout.annotations)),
        ]
        width, height = number(self.width), number(self.height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" font-family="system-ui, sans-serif" '
            f'aria-hidden="true">{"".join(parts)}</svg>'
        )

    # Axes ----------------------------------------------------------------------------------------

    def _axis(self, name: str) -> Axis:
        across = name[0] == "x"
        layout = self.layout[f"{name[0]}axis{name[1:]}"]
        values: list[Any] = []
        bars = False
        for trace in self.figure.data:
            if (getattr(trace, f"{name[0]}axis") or name[0]) != name:
                continue
            own = getattr(trace, name[0])
            values += [] if own is None else list(own)
            upright = trace.type == "bar" and (trace.orientation or "v") == "v"
            bars |= trace.type == "bar" and upright is not across
        low, high = layout.domain or (0.0, 1.0)
        place = self._x if across else self._y
        ends = place(low), place(high)
        return Axis(layout, *ends, values, bars=bars)

    def _x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def _y(self, share: float) -> float:
        return self.bottom - share * (self.bottom - self.top)

    def _pairs(self) -> Iterator[tuple[Axis, Axis]]:
        """Yield the two axes of each plot, once."""
        names = dict.fromkeys((t.xaxis or "x", t.yaxis or "y") for t in self.figure.data)
        for x, y in names:
            yield self.axes[x], self.axes[y]

    def _grounds(self) -> Iterator[str]:
        color = str(self.layout.plot_bgcolor or "")
        if color and not color.startswith("rgba(0,0,0,0"):
            for x, y in self._pairs():
                yield rect(x.start, x.end, y.start, y.end, color)

    def _grids(self) -> Iterator[str]:
        for x, y in self._pairs():
            if x.layout.showgrid:
                yield from (line(p, y.start, p, y.end, x.layout.gridcolor) for p, _ in x.ticks())
            if y.layout.showgrid:
                yield from (line(x.start, p, x.end, p, y.layout.gridcolor) for p, _ in y.ticks())

    def _axes_and_titles(self) -> Iterator[str]:
        for x, y in self._pairs():
            base = max(y.start, y.end)
            if x.layout.showline:
                yield line(x.start, base, x.end, base, x.layout.linecolor)
            if y.layout.showline:
                yield line(x.start, y.start, x.start, y.end, y.layout.linecolor)
            for place, text in x.ticks():
                yield words(place, base + 17, text, x.layout.tickfont, "middle")
            for place, text in y.ticks():
                yield words(x.start - 6, place + 4, text, y.layout.tickfont, "end")
            yield from self._titles(x, y, base)

    def _titles(self, x: Axis, y: Axis, base: float) -> Iterator[str]:
        if (title := x.layout.title).text:
            below = base + (34 if x.ticks() else 18)
            yield words((x.start + x.end) / 2, below, title.text, title.font, "middle")
        if (title := y.layout.title).text:
            widest = max((len(plain_text(text)) for _, text in y.ticks()), default=0)
            at = max(11.0, x.start - 12 - LETTER * widest)
            yield words(at, (y.start + y.end) / 2, title.text, title.font, "middle", -90)

    # What is drawn -------------------------------------------------------------------------------

    def _trace(self, trace: Any) -> Iterator[str]:
        x, y = self.axes[trace.xaxis or "x"], self.axes[trace.yaxis or "y"]
        if trace.type == "heatmap":
            yield from self._map(trace, x, y)
        elif trace.type == "bar":
            yield from self._bars(trace, x, y)
        else:
            faint = "" if trace.opacity is None else f' opacity="{trace.opacity:.2f}"'
            yield f"<g{faint}>{''.join(scatter(trace, x, y))}</g>"

    def _bars(self, trace: Any, x: Axis, y: Axis) -> Iterator[str]:
        lying = trace.orientation == "h"
        along, across = (x, y) if lying else (y, x)
        names, lengths = (trace.y, trace.x) if lying else (trace.x, trace.y)
        if names is None or lengths is None:
            return
        half = (1 - float(self.layout.bargap if self.layout.bargap is not None else 0.2)) / 2
        unit = abs(across.end - across.start) / abs(across.high - across.low)
        before = self._below(trace, lying=lying)
        colors = trace.marker.color
        for place, (name, length) in enumerate(zip(names, lengths, strict=True)):
            start = before.get(name, 0.0)
            middle, color = across.at(name), colors if isinstance(colors, str) else colors[place]
            sides = middle - half * unit, middle + half * unit
            ends = along.at(start), along.at(start + float(length))
            yield rect(*(ends + sides if lying else sides + ends), color)

    def _below(self, trace: Any, *, lying: bool) -> dict[Any, float]:
        """Return {name: what the bars before this one come to}, where bars are stacked."""
        found: dict[Any, float] = {}
        for other in self.figure.data if self.layout.barmode == "stack" else ():
            if other is trace:
                break
            if other.type == "bar":
                names, lengths = (other.y, other.x) if lying else (other.x, other.y)
                for name, length in zip(names, lengths, strict=True):
                    found[name] = found.get(name, 0.0) + float(length)
        return found

    def _map(self, trace: Any, x: Axis, y: Axis) -> Iterator[str]:
        if trace.z is None or not len(trace.z):
            return
        values = np.array(trace.z, np.float64)
        low, high = trace.zmin, trace.zmax  # each map of this package has them
        shares = (values - low) / ((high - low) or 1.0)
        yield image(*_ends(x, trace.x), *_ends(y, trace.y), shares, trace.colorscale)
        if trace.showscale is not False:
            yield from _color_bar(trace, low, high, x, y)

    # About it ------------------------------------------------------------------------------------

    def _shape(self, shape: Any) -> str:
        look = (
            f'fill="none" stroke="{color_of(shape.line.color)}" '
            f'stroke-width="{number(shape.line.width or 1)}"{dash(shape.line.dash)}'
        )
        x_ref, y_ref = shape.xref or "x", shape.yref or "y"
        if shape.type == "path":
            corners = [point.split(",") for point in re.split("[MLZ]", shape.path) if point]
        else:
            corners = [[shape.x0, shape.y0], [shape.x1, shape.y1]]
        places = [
            (self._place(x, x_ref, across=True), self._place(y, y_ref, across=False))
            for x, y in corners
        ]
        if shape.type == "rect":
            (x0, y0), (x1, y1) = places
            return rect(x0, x1, y0, y1, shape.fillcolor)
        pixels = " ".join(f"{number(x)},{number(y)}" for x, y in places)
        return f'<polyline points="{pixels}" {look}/>'

    def _place(self, value: Any, ref: str, *, across: bool) -> float:
        """Return the pixel of a place that is told by an axis, by its domain, or by the plot."""
        if ref == "paper":
            return self._x(float(value)) if across else self._y(float(value))
        name, _, domain = ref.partition(" ")
        axis = self.axes.get(name) or self._axis(name)
        if domain:
            return axis.start + float(value) * (axis.end - axis.start)
        if axis.log and value not in axis.names:
            return axis.at(10.0 ** float(value))  # plotly's notes on such an axis tell the exponent
        return axis.at(value if value in axis.names else float(value))

    def _annotation(self, note: Any) -> str:
        if not note.text:
            return ""
        x = self._place(note.x, note.xref or "x", across=True) + float(note.xshift or 0)
        y = self._place(note.y, note.yref or "y", across=False) - float(note.yshift or 0)
        baseline = y + _DOWN.get(note.yanchor or "", 0.35) * float(note.font.size or 12)
        anchor = _ANCHORS.get(note.xanchor or "", "middle")
        return words(x, baseline, note.text, note.font, anchor, float(note.textangle or 0))

    def _legend(self) -> Iterator[str]:
        if not self.layout.showlegend:
            return
        font = self.layout.legend.font
        traces = [t for t in self.figure.data if t.name and t.showlegend is not False]
        widths = [34 + LETTER * len(plain_text(t.name)) for t in traces]
        lines = 1 if sum(widths) <= self.right - self.left else 2
        at, row = self.left, 0
        if self.layout.legend.xanchor == "right":
            at = max(self.left, self.right - sum(widths))
        for trace, width in zip(traces, widths, strict=True):
            if at + width > self.right and at > self.left and row + 1 < lines:
                at, row = self.left, row + 1
            y = self.top - 9 - 17 * (lines - 1 - row)
            yield mark(trace, at, y)
            yield words(at + 21, y + 4, trace.name, font, "start")
            at += width


def _ends(axis: Axis, places: Any) -> tuple[float, float]:
    """Return the pixels where a map's first cell begins and its last one ends."""
    half = (float(places[1]) - float(places[0])) / 2 if len(places) > 1 else 0.5
    return axis.at(float(places[0]) - half), axis.at(float(places[-1]) + half)


def _color_bar(trace: Any, low: float, high: float, x: Axis, y: Axis) -> Iterator[str]:
    bar = trace.colorbar
    left = x.end + float(bar.xpad if bar.xpad is not None else 8)
    bottom, top = max(y.start, y.end), min(y.start, y.end)
    right = left + float(bar.thickness or 8)
    yield image(left, right, bottom, top, np.linspace(0, 1, 64)[:, None], trace.colorscale)
    of_bar = {name: getattr(bar, name) for name in ("tickvals", "ticktext", "tickformat", "nticks")}
    other = {"type": "linear", "categoryarray": None, "showticklabels": True, "dtick": None}
    scale = Axis(SimpleNamespace(range=[low, high], **of_bar, **other), bottom, top, [])
    for place, text in scale.ticks():
        yield words(right + 4, place + 4, text, bar.tickfont, "start")
    if bar.title.text:
        yield words(left, top - 6, bar.title.text, bar.title.font, "start")
