"""Warnings that point at the user's line."""

from __future__ import annotations

import inspect
import warnings


def warn(line: str) -> None:
    """Warn at the line that called LoRA Lab, however deep it is from here."""
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] == "lora_lab":
        level, frame = level + 1, frame.f_back
    warnings.warn(line, stacklevel=level - 1 if frame is None else level)
