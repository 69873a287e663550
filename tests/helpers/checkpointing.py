"""Gradient checkpointing, whatever this version of transformers calls it."""

from __future__ import annotations

from typing import Any


def checkpoint(model: Any, **settings: Any) -> None:
    """Switch it on as a user does, with transformers' own settings for it."""
    enable = getattr(model, "activation_checkpointing_enable", None)  # later than 5.15
    (enable or model.gradient_checkpointing_enable)(*([settings] if settings else []))
