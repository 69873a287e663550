"""Was a run begun here? Only then do the paths in its config.json say anything about this machine.

A run's folder may come from anybody. Its config.json names files and folders to load again, and a
stranger's would have us read whatever he wrote there. So a run's sources are marked with a key of
this user's own, which no run's folder holds; see SECURITY.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_lab._util.files import cache_folder, write_file_atomic

_KEY_FILE = "origin.key"
_KEY_BYTES = 32


def sign(sources: Mapping[str, Any]) -> str | None:
    """Return what says that this user's LoRA Lab wrote these sources; None where it has no key."""
    key = _key()
    return None if key is None else _digest(key, sources)


def verify(config: Mapping[str, Any]) -> bool:
    """Return whether a run's config.json has its sources from this user's own LoRA Lab."""
    known, key = config.get("origin"), _key()
    if key is None or not isinstance(known, str):
        return False
    return hmac.compare_digest(known.encode(), _digest(key, config.get("sources")).encode())


def _digest(key: bytes, sources: Any) -> str:
    text = json.dumps(sources, sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Return this user's key, made when it is first needed; None where no file can be kept."""
    path = cache_folder() / _KEY_FILE
    with contextlib.suppress(OSError):
        if not path.exists():
            _make(path)
        key = path.read_bytes()
        return key if len(key) == _KEY_BYTES else None
    return None


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_file_atomic(path, replace=False) as temporary:
        temporary.touch(0o600)  # nobody else's to read
        temporary.write_bytes(secrets.token_bytes(_KEY_BYTES))
