"""The pieces of a picture: lines, dots, rectangles, texts, and maps as PNG."""

from __future__ import annotations

import base64
import html
import itertools
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lora_lab.figures._picture_axes import Axis

_TAGS = re.compile(r"<(/?)(sub|sup|b|i|br)\s*/?>", re.IGNORECASE)
_RAISED = str.maketrans("0123456789-−+", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻⁺")
_LOWERED = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_DASHES = {"dot": "1.5 3", "dash": "6 4", "dashdot": "6 3 1.5 3"}
_NO_COLOR = "none"


def scatter(trace: Any, x: Axis, y: Axis) -> Iterator[str]:
    """Yield a trace's line, cut where a value is missing, and its dots."""
    if trace.x is None or trace.y is None:
        return
    points = [(x.at(a), y.at(b)) for a, b in zip(trace.x, trace.y, strict=True)]
    mode = str(trace.mode or "lines")
    if "lines" in mode:
        color, width = trace.line.color, trace.line.width or 2
        look = (
            f'fill="none" stroke="{color_of(color)}" stroke-width="{number(width)}" '
            f'stroke-linejoin="round"{dash(trace.line.dash)}'
        )
        for run in _runs(points, bridged=bool(trace.connectgaps)):
            bent = _steps(run) if trace.line.shape == "hvh" else run
            pixels = " ".join(f"{number(a)},{number(b)}" for a, b in bent)
            yield f'<polyline points="{pixels}" {look}/>'
    if "markers" in mode:
        yield from _dots(trace, points)


def _dots(trace: Any, points: Sequence[tuple[float, float]]) -> Iterator[str]:
    marker = trace.marker
    for place, (a, b) in enumerate(points):
        if math.isfinite(a) and math.isfinite(b):
            size, symbol, color = (
                each if each is None or isinstance(each, (str, int, float)) else each[place]
                for each in (marker.size, marker.symbol, marker.color)
            )
            faint = marker.opacity if isinstance(marker.opacity, (int, float)) else 1
            yield dot(a, b, float(size or 6), str(symbol or "circle"), color, faint)


def dot(x: float, y: float, size: float, symbol: str, color: Any, opacity: float = 1) -> str:
    """Return one dot, `size` pixels wide."""
    half, fill = size / 2, f'fill="{color_of(color)}"'
    fill += "" if opacity == 1 else f' opacity="{number(opacity)}"'
    if symbol.startswith("diamond"):
        half *= 1.3
        corners = ((x, y - half), (x + half, y), (x, y + half), (x - half, y))
        pixels = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
        return f'<polygon points="{pixels}" {fill}/>'
    if symbol.startswith("square"):
        return (
            f'<rect x="{number(x - half)}" y="{number(y - half)}" width="{number(size)}" '
            f'height="{number(size)}" {fill}/>'
        )
    return f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(half)}" {fill}/>'


def _runs(
    points: Sequence[tuple[float, float]], *, bridged: bool
) -> Iterator[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for point in points:
        if all(map(math.isfinite, point)):
            run.append(point)
        elif run and not bridged:
            yield run
            run = []
    if run:
        yield run


def _steps(run: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a line that goes up or down half-way between its points, plotly's "hvh"."""
    found = [run[0]]
    for (a, b), (c, d) in itertools.pairwise(run):
        found += [((a + c) / 2, b), ((a + c) / 2, d), (c, d)]
    return found


def mark(trace: Any, x: float, y: float) -> str:
    """Return a trace's sign in a legend, 16 pixels wide."""
    if trace.type == "bar":
        return rect(x, x + 12, y - 5, y + 5, trace.marker.color)
    mode, parts = str(trace.mode or "lines"), []
    if "lines" in mode:
        parts.append(
            line(x, y, x + 16, y, trace.line.color, trace.line.width or 2, trace.line.dash)
        )
    if "markers" in mode:
        marker = trace.marker
        color = marker.color if isinstance(marker.color, str) else trace.line.color
        symbol = marker.symbol if isinstance(marker.symbol, str) else "circle"
        size = marker.size if isinstance(marker.size, (int, float)) else 6
        parts.append(dot(x + 8, y, min(8.0, float(size)), symbol, color))
    return "".join(parts)


def line(
    x0: float, y0: float, x1: float, y1: float, color: Any, width: float = 1, dashed: Any = None
) -> str:
    """Return one straight line."""
    return (
        f'<line x1="{number(x0)}" y1="{number(y0)}" x2="{number(x1)}" y2="{number(y1)}" '
        f'stroke="{color_of(color)}" stroke-width="{number(width)}"{dash(dashed)}/>'
    )


def rect(x0: float, x1: float, y0: float, y1: float, color: Any) -> str:
    """Return a filled rectangle between two pairs of sides, whichever comes first."""
    left, right = sorted((x0, x1))
    top, bottom = sorted((y0, y1))
    return (
        f'<rect x="{number(left)}" y="{number(top)}" width="{number(right - left)}" '
        f'height="{number(bottom - top)}" fill="{color_of(color)}"/>'
    )


def words(x: float, y: float, text: Any, font: Any, anchor: str, turned: float = 0) -> str:
    """Return a line of text; `turned` about its place, in degrees.

    Args:
        x, y: where its baseline begins, has its middle, or ends.
        text: as plotly takes it.
        font: with a size and a color.
        anchor: "start", "middle" or "end".
        turned: clockwise.
    """
    turn = f' transform="rotate({number(turned)} {number(x)} {number(y)})"' if turned else ""
    return (
        f'<text x="{number(x)}" y="{number(y)}" font-size="{number(font.size or 12)}" '
        f'fill="{color_of(font.color)}" text-anchor="{anchor}"{turn}>'
        f"{html.escape(plain_text(text))}</text>"
    )


def plain_text(text: Any) -> str:
    """Return what plotly would show of a text: its tags and entities read, as characters."""
    parts: list[str] = []
    inside = ""
    at = 0
    for tag in _TAGS.finditer(str(text)):
        parts.append(_scripted(str(text)[at : tag.start()], inside))
        at = tag.end()
        name = tag[2].lower()
        if name == "br":
            parts.append(" ")
        elif name in ("sub", "sup"):
            inside = "" if tag[1] else name
    parts.append(_scripted(str(text)[at:], inside))
    return "".join(parts)


def _scripted(text: str, inside: str) -> str:
    read = html.unescape(text)
    table = {"sub": _LOWERED, "sup": _RAISED}.get(inside)
    return read.translate(table) if table else read


def image(x0: float, x1: float, y0: float, y1: float, shares: np.ndarray, scale: Any) -> str:
    """Return a map whose first row is at y0 and first column at x0, as a PNG.

    Args:
        x0, x1, y0, y1: its sides in pixels.
        shares: (rows, columns), 0 to 1; what is not finite stays clear.
        scale: ((share, color), …) from 0 to 1.
    """
    if x0 > x1:
        shares, x0, x1 = shares[:, ::-1], x1, x0
    if y0 > y1:
        shares, y0, y1 = shares[::-1], y1, y0
    data = base64.b64encode(_png(_colored(shares, scale))).decode()
    return (
        f'<image x="{number(x0)}" y="{number(y0)}" width="{number(x1 - x0)}" '
        f'height="{number(y1 - y0)}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
    )


def _colored(shares: np.ndarray, scale: Any) -> np.ndarray:
    """Return (rows, columns, 4) uint8."""
    stops = np.array([float(stop) for stop, _ in scale])
    colors = np.array([_rgb(color) for _, color in scale], np.float64)
    known = np.isfinite(shares)
    held = np.clip(np.where(known, shares, 0.0), 0, 1)
    bands = [np.interp(held, stops, colors[:, band]) for band in range(3)]
    return np.stack([*bands, 255.0 * known], axis=-1).round().astype(np.uint8)


def _rgb(color: str) -> tuple[float, float, float]:
    if color.startswith("#"):
        return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]
    return tuple(map(float, re.findall(r"[\d.]+", color)[:3]))  # type: ignore[return-value]


def _png(pixels: np.ndarray) -> bytes:
    """Return an image as a PNG file. pixels: (rows, columns, 4) uint8."""
    rows, columns, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw, 9)),
        (b"IEND", b""),
    )
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def dash(kind: Any) -> str:
    """Return the attribute of a broken line, "" of a whole one."""
    return f' stroke-dasharray="{_DASHES[kind]}"' if kind in _DASHES else ""


def color_of(color: Any) -> str:
    """Return a color as an attribute holds it."""
    return html.escape(str(color)) if color is not None else _NO_COLOR


def number(value: float) -> str:
    """Return pixels with a digit behind the point."""
    return f"{value:.1f}".removesuffix(".0")
