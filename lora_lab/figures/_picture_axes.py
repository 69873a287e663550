"""An axis of a figure in pixels, and its ticks, as plotly would place them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_PAD = 0.05  # of the data beside it, where no range is set


class Axis:
    """Where the values of one axis lie.

    Args:
        layout: plotly's axis.
        start, end: pixels of its lower end and of its upper one.
        values: all that is drawn along it, numbers or names.
        bars: whether bars stand on it: then 0 is in its range.
    """

    def __init__(
        self, layout: Any, start: float, end: float, values: Sequence[Any], *, bars: bool = False
    ) -> None:
        self.layout, self.start, self.end = layout, start, end
        names = [value for value in values if isinstance(value, str)]
        self.names: list[str] = list(layout.categoryarray or ()) if names else []
        self.names += [name for name in dict.fromkeys(names) if name not in self.names]
        self.log = layout.type == "log"
        low, high = self._range([v for v in values if not isinstance(v, str)], bars=bars)
        self.low, self.high = low, high

    def _range(self, values: Sequence[Any], *, bars: bool) -> tuple[float, float]:
        given = self.layout.range
        if given is not None:
            return float(given[0]), float(given[1])
        if self.names:
            return -0.5, len(self.names) - 0.5
        numbers = np.array([float(value) for value in values], np.float64)
        numbers = numbers[np.isfinite(numbers)]
        if self.log:
            numbers = np.log10(numbers[numbers > 0])
        if bars:
            numbers = np.append(numbers, 0.0)
        if not len(numbers):
            return 0.0, 1.0
        low, high = float(numbers.min()), float(numbers.max())
        pad = _PAD * (high - low) or 0.5
        return (low if bars and low == 0 else low - pad), high + pad

    def at(self, value: Any) -> float:
        """Return the pixel of a value; NaN where it has none."""
        place = self._number(value)
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def _number(self, value: Any) -> float:
        if isinstance(value, str) and value in self.names:
            return float(self.names.index(value))
        number = float(value)
        if not self.log:
            return number
        return math.log10(number) if number > 0 else math.nan

    def ticks(self) -> list[tuple[float, str]]:
        """Return (pixel, text) of the ticks within the range."""
        if self.layout.showticklabels is False:
            return []
        if self.layout.tickvals is not None:
            texts = self.layout.ticktext or [self._text(value) for value in self.layout.tickvals]
            pairs = [*zip(self.layout.tickvals, map(str, texts), strict=False)]
        elif self.names:
            pairs = [(name, name) for name in self.names]
        else:
            pairs = [(value, self._text(value)) for value in self._regular()]
        low, high = sorted((self.low, self.high))
        inside = 1e-9 * (high - low)
        return [
            (self.at(value), text)
            for value, text in pairs
            if low - inside <= self._number(value) <= high + inside
        ]

    def _regular(self) -> list[float]:
        low, high = sorted((self.low, self.high))
        if self.log:
            return [10.0**e for e in range(math.ceil(low), math.floor(high) + 1)]
        step = self.layout.dtick or nice_step((high - low) / max(1, (self.layout.nticks or 6) - 1))
        first = math.ceil(low / step - 1e-9)
        return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]

    def _text(self, value: Any) -> str:
        return formatted(float(value), str(self.layout.tickformat or ""))


def nice_step(least: float) -> float:
    """Return the next of 1, 2, 5 × 10ⁿ."""
    if not least > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= least * (1 - 1e-9))


def formatted(value: float, kind: str) -> str:
    """Return a tick's number in those of d3's formats that the figures use."""
    value = value if abs(value) > 1e-12 else 0.0
    if kind == ",d":
        text = f"{round(value):,}"
    elif kind.endswith(("p", "%")):
        text = f"{100 * value:.3g}%"
    elif kind.startswith(".") and kind.endswith("f"):
        text = f"{value:{kind}}"
    else:
        text = f"{value:.6g}" if kind in ("", "~g") else f"{value:.3g}"
    return text.replace("-", "−")
