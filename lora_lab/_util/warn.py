"""Warnings that point at the user's line."""

from __future__ import annotations

import inspect
import warnings

from lora_lab.redaction import redacted


def warn(line: str) -> None:
    """Warn at the line that called LoRA Lab, however deep it is from here; secrets are redacted."""
    level, frame = 1, inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] == "lora_lab":
        level, frame = level + 1, frame.f_back
    warnings.warn(redacted(line), stacklevel=level - 1 if frame is None else level)
