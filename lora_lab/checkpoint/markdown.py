"""Markdown of numbers and of names that may hold anything."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

# What Markdown, HTML, automatic links and the hub's formulas would take for theirs.
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>#|~&!$@:]|(?<=www)\.")


def escaped(text: str) -> str:
    """Return Markdown that shows a text as it is, on one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _MARKUP.sub(r"\\\g<0>", line)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Return a whole number in full, any other with four significant digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def span(values: Sequence[float]) -> str:
    """Return "8", or "4 to 16" of several; "" of none."""
    if not values:
        return ""
    low, high = min(values), max(values)
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)
