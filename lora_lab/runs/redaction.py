"""Tokens never go into a run's files."""

from __future__ import annotations

import os
import re

_NAMED = re.compile(r"TOKEN|API_?KEY|SECRET|PASSWORD|CREDENTIAL", re.I)
_SHAPED = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|ghp_[A-Za-z0-9]{30,})\b")
_SHORTEST = 8  # a value of fewer letters stands in too many innocent words
_IN_PLACE = "[redacted]"


def redacted(text: str) -> str:
    """Return a text without what looks like a token, or stands in a variable named like one."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _NAMED.search(name) and not value.startswith(("/", "."))
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, _IN_PLACE)
    return _SHAPED.sub(_IN_PLACE, text)
