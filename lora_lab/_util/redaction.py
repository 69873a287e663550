"""Tokens never go into a run's files, nor into what a notebook shows."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

# Whole words of a variable's name: TOKENIZER_NAME is none.
_NAMED = re.compile(
    r"(?:^|_)(?:TOKEN|API_?KEY|ACCESS_?KEY|SECRET|SECRETS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)"
    r"(?:$|_)",
    re.I,
)
_OF_PATH = re.compile(r"_(?:FILE|PATH|DIR)$", re.I)
# Those of Hugging Face, OpenAI, Anthropic, GitHub, GitLab, Slack, Google, NVIDIA, Replicate, W&B.
_SHAPED = re.compile(
    r"\b(?:hf_(?:[A-Za-z0-9]{20,}|oauth_[A-Za-z0-9._-]{20,})"
    r"|sk-[A-Za-z0-9_-]{20,}|gh[opsur]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{16,}"
    r"|AIza[A-Za-z0-9_-]{30,}|ya29\.[A-Za-z0-9_-]{20,}|nvapi-[A-Za-z0-9_-]{30,}"
    r"|r8_[A-Za-z0-9]{30,}|wandb_v1_[A-Za-z0-9_]{20,})\b"
)
# What stands behind these words is secret whatever its shape. None of it reaches over a quote or
# a backslash: a text of JSON stays one. A tokenizer's eos_token=… is no secret.
_BEHIND = re.compile(
    r"""
    (?P<named>(?i:\bauthorization(?:\\*["']\s*:\s*\\*["']|\s*[:=]\s*)
        (?:(?:bearer|basic|token)\s+)?))[^\s"'\\,;}]+
    | (?i:\bbearer\s+)(?=\S*\d)[A-Za-z0-9._~+/=-]{16,}
    | (?P<key>(?i:\b[\w-]*(?:(?<!\b(?:eos|bos|pad|unk|sep|cls)_)(?<!\bmask_)token|api[_-]?key
        |secret|passw(?:or)?d|access[_-]?key)(?:=|\\*["']\s*:\s*)\\*["']?))[^\s"'\\,;}<>|&]{8,}
    | (?P<part>(?i:[?&](?:[\w-]*(?:token|key|signature|secret|password)|sig)=))[^\s"'\\&\#]{4,}
    | (?<=://)[^/\s"'\\@]+(?=@)
    """,
    re.X,
)
_SHORTEST = 8  # a value of fewer letters stands in too many innocent words
_IN_PLACE = "[redacted]"


def redacted(text: str) -> str:
    """Return a text without what looks like a token, or stands where one does."""
    return _without(_secrets(), text)


def _without(secrets: list[str], text: str) -> str:
    for value in secrets:
        if value in text:  # as a word of its own: digits of a longer number are none
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])", _IN_PLACE, text)
    text = _SHAPED.sub(_IN_PLACE, text)
    return _BEHIND.sub(_without_value, text)


def redacted_values(value: Any) -> Any:
    """Return plain values with their texts redacted, before they are written as JSON.

    Numbers stay: a seed that is somebody's password is a seed.
    """
    secrets = _secrets()  # once: an adapter's config has a thousand texts

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _without(secrets, value)
        if isinstance(value, Mapping):
            return {key: clean(own) for key, own in value.items()}
        return type(value)(map(clean, value)) if isinstance(value, list | tuple) else value

    return clean(value)


def _without_value(found: re.Match[str]) -> str:
    return (found["named"] or found["key"] or found["part"] or "") + _IN_PLACE


def _secrets() -> list[str]:
    """Return the environment's secrets, longest first: as they are, and as JSON, Python and URLs
    have them.
    """
    found: set[str] = set()
    for name, value in os.environ.items():
        if len(value) < _SHORTEST or not _NAMED.search(name) or _OF_PATH.search(name):
            continue
        if os.path.exists(os.path.expanduser(value)):
            continue
        found |= {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
        found |= {repr(value)[1:-1], quote(value, safe="")}
    return sorted(found, key=len, reverse=True)
