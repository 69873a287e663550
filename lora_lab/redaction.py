"""Tokens never go into a run's files, nor into what a notebook shows."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, TypeVar
from urllib.parse import quote, unquote

# Whole words of a variable's name: TOKENIZER_NAME is none.
_NAMED = re.compile(
    r"(?:^|_)(?:TOKEN|API_?KEYS?|ACCESS_?KEY|PRIVATE_?KEY|SECRETS?|(?:PG)?PASSWORD|PASSWD|PASS"
    r"|PASSPHRASE|CREDENTIALS?|CREDS)(?:$|_)|^MYSQL_PWD$",
    re.I,
)
# Many keys are no secrets: what looks like chance is.
_MAYBE_NAMED = re.compile(r"(?:^|_)(?:KEY|PAT|AUTH)$", re.I)
_BY_CHANCE = re.compile(r"(?=\D*\d)(?=[^A-Za-z]*[A-Za-z])[\w+/=~.-]{16,}")
_PASSWORD_OF_URL = re.compile(r"://[^/\s:@]*:([^/\s@]+)@")
_OF_PATH = re.compile(r"_(?:FILE|PATH|DIR)$", re.I)
_SHAPED = re.compile(
    r"""
    \b(?:
      # Hubs: Hugging Face, ModelScope, Kaggle, W&B, Replicate, NVIDIA.
      hf_(?:[A-Za-z0-9]{20,}|(?:oauth|jwt)_[A-Za-z0-9._-]{20,}) | api_org_[A-Za-z0-9]{30,}
    | ms-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12} | KGAT_[A-Za-z0-9]{30,}
    | wandb_v1_[A-Za-z0-9_]{20,} | r8_[A-Za-z0-9]{30,} | nvapi-[A-Za-z0-9_-]{30,}
      # Models behind an interface: OpenAI, Anthropic and those alike, Groq, xAI, Perplexity, …
    | sk-[A-Za-z0-9_-]{20,} | csk-[a-z0-9]{30,} | gsk_[A-Za-z0-9]{40,} | xai-[A-Za-z0-9]{40,}
    | pplx-[A-Za-z0-9]{40,} | tgp_v1_[A-Za-z0-9_-]{30,} | lsv2_(?:pt|sk)_[A-Za-z0-9_]{30,}
    | pcsk_[A-Za-z0-9_]{30,} | jina_[A-Za-z0-9_-]{40,} | rpa_[A-Z0-9]{30,}
      # Code: GitHub, GitLab, npm, PyPI, Docker.
    | gh[opsur]_[A-Za-z0-9]{30,} | github_pat_[A-Za-z0-9_]{30,}
    | gl(?:pat|dt|rt|cbt|ptt|ft|imt|soat|oas|agent)-[A-Za-z0-9_.-]{16,}
    | npm_[A-Za-z0-9]{36} | pypi-[A-Za-z0-9_-]{50,} | dckr_[po]at_[A-Za-z0-9_-]{20,}
      # Clouds: AWS's keys' names, Google, Azure, Alibaba, Databricks, DigitalOcean, Vault.
    | A(?:KIA|SIA)[A-Z0-9]{16} | AIza[A-Za-z0-9_-]{30,} | ya29\.[A-Za-z0-9_-]{20,}
    | GOCSPX-[A-Za-z0-9_-]{20,} | [A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{31,34}
    | LTAI[A-Za-z0-9]{12,} | dapi[0-9a-f]{32}(?:-\d)? | do[por]_v1_[0-9a-f]{64}
    | hv[sbr]\.[A-Za-z0-9_-]{24,}
      # Others: Slack, Stripe, SendGrid, Telegram; a signed token (JWT).
    | xox[abeoprs]-[A-Za-z0-9-]{16,} | xapp-[A-Za-z0-9-]{30,} | [rs]k_(?:live|test)_[A-Za-z0-9]{16,}
    | SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{30,} | \d{8,10}:AA[A-Za-z0-9_-]{33}
    | eyJ[A-Za-z0-9_-]{10,500}\.eyJ[A-Za-z0-9_-]{10,5000}\.[A-Za-z0-9_-]{16,}
    )(?![A-Za-z0-9])
    | -----BEGIN\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----
      (?:[A-Za-z0-9+/=\s]|\\[nr])*(?:-----END\ [A-Z\ ]{1,40}-----)?
    """,
    re.X,
)
# What stands behind these words is secret whatever its shape. None of it reaches over a quote or
# a backslash: a text of JSON stays one. A tokenizer's eos_token=… is no secret. As a path a URL has
# one slash left.
_BEHIND = re.compile(
    r"""
    (?P<named>(?i:\b(?:authorization|cookie|x-(?:api-key|auth-token|goog-api-key))
        (?:\\*["']\s*:\s*\\*["']|\s*[:=]\s*)
        (?:(?:bearer|basic|token)\s+)?))[^\s"'\\,;}]+
    | (?i:\bbearer\s+)(?=\S*\d)[A-Za-z0-9._~+/=-]{16,}
    | (?P<key>(?i:(?:(?<!\b(?:eos|bos|pad|unk|sep|cls)_)(?<!\bmask_)token|api[_-]?key
        |secret|passw(?:or)?d|(?:access|account)[_-]?key)(?:=|\\*["']\s*:\s*)\\*["']?))
        [^\s"'\\,;}<>|&]{8,}
    | (?P<part>(?i:[?&](?:[\w-]*(?:token|key|signature|secret|password|credential)|sig)=))
        [^\s"'\\&\#]{4,}
    | (?P<url>(?<=[A-Za-z0-9]{2}):/{1,2})[^/\s"'\\@]+(?=@)
    """,
    re.X,
)
_SHORTEST = 8  # a value of fewer letters stands in too many innocent words
_IN_PLACE = "[redacted]"
_SHOWS = "__repr__", "__str__", "_repr_html_"
Shown = TypeVar("Shown", bound=type)


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


def shown_redacted(kind: Shown) -> Shown:
    """Have objects of a class show no secret: a notebook keeps what a cell shows."""

    def clean(show: Callable[[Any], str]) -> Callable[[Any], str]:
        return functools.wraps(show)(lambda own: redacted(show(own)))

    for name in set(_SHOWS) & vars(kind).keys():
        setattr(kind, name, clean(vars(kind)[name]))
    return kind


def _without_value(found: re.Match[str]) -> str:
    kept = found["named"] or found["key"] or found["part"] or found["url"] or ""
    return kept + _IN_PLACE


def _secrets() -> list[str]:
    """Return the environment's secrets, longest first: as they are, and as JSON, Python, URLs and
    HTML have them.
    """
    found: set[str] = set()
    for name, own in os.environ.items():
        inside = _PASSWORD_OF_URL.findall(own)  # of a proxy, a database; of several
        for value in map(unquote, inside) if inside else (own,):
            if len(value) < _SHORTEST or not (inside or _is_secret(name, value)):
                continue
            found |= {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
            found |= {repr(value)[1:-1], quote(value, safe=""), escape(value)}
    return sorted(found, key=len, reverse=True)


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable of the environment holds what nobody is to see."""
    by_chance = _MAYBE_NAMED.search(name) and _BY_CHANCE.fullmatch(value)
    if _OF_PATH.search(name) or not (_NAMED.search(name) or by_chance):
        return False
    return not os.path.exists(os.path.expanduser(value))
