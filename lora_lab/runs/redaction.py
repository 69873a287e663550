"""Tokens never go into a run's files, nor into what a notebook shows."""

from __future__ import annotations

import os
import re

_NAMED = re.compile(r"TOKEN|API_?KEY|SECRET|PASSWORD|CREDENTIAL", re.I)
_SHAPED = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|ghp_[A-Za-z0-9]{30,}"
    r"|wandb_v1_[A-Za-z0-9_]{20,})\b"
)
# What stands behind these words is secret whatever its shape. None of it reaches over a quote or
# a backslash: a text of JSON stays one.
_BEHIND = re.compile(
    r"""
    (?P<named>(?i:\bauthorization(?:\\*["']\s*:\s*\\*["']|\s*[:=]\s*)
        (?:(?:bearer|basic|token)\s+)?))[^\s"'\\,;}]+
    | (?i:\bbearer\s+)(?=\S*\d)[A-Za-z0-9._~+/=-]{16,}
    | \b[A-Z0-9_]*(?:TOKEN|API_?KEY|SECRET|PASSWORD)=[^\s"'\\,;}]{8,}
    | (?<=://)[^/\s"'\\:@]*:[^/\s"'\\@]+(?=@)
    """,
    re.X,
)
_SHORTEST = 8  # a value of fewer letters stands in too many innocent words
_IN_PLACE = "[redacted]"


def redacted(text: str) -> str:
    """Return a text without what looks like a token, or stands where one does."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _NAMED.search(name) and not value.startswith(("/", "."))
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, _IN_PLACE)
    text = _SHAPED.sub(_IN_PLACE, text)
    return _BEHIND.sub(lambda found: (found["named"] or "") + _IN_PLACE, text)
