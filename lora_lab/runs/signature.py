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
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_lab._util.files import cache_folder, make_dirs, put_aside, write_file_atomic
from lora_lab._util.ownership import stranger

_KEY_FILE = "origin.key"
_KEY_BYTES = 32


def signed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's config with what says that this user's LoRA Lab wrote its sources.

    That is None where it has no key.
    """
    key = _key()
    origin = None if key is None else _digest(key, config["sources"])
    return {**config, "origin": origin}


def verify(config: Mapping[str, Any]) -> bool:
    """Return whether a run's config.json has its sources from this user's own LoRA Lab."""
    known, key = config.get("origin"), _key()
    if key is None or not isinstance(known, str):
        return False
    # A stranger's file may hold half of a surrogate pair, which is no UTF-8.
    given = known.encode(errors="surrogatepass")
    return hmac.compare_digest(given, _digest(key, config.get("sources")).encode())


def _digest(key: bytes, sources: Any) -> str:
    text = json.dumps(sources, sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Return this user's key, made when it is first needed; None where no file can be kept.

    A damaged one, such as an empty one after a power loss, is made anew; so is one of zeros, which
    anybody could guess.
    """
    path = cache_folder() / _KEY_FILE
    with contextlib.suppress(OSError):
        if path.exists() and (why := stranger(path)) is not None:
            warnings.warn(
                f"{path} {why}, so that runs are not known as your own; remove it, or set "
                "LORA_LAB_CACHE to a folder that is yours alone",
                stacklevel=4,
            )
            return None
        if not path.exists():
            _make(path, replace=False)
        if not _is_key(path):
            if path.is_dir():
                put_aside(path)
            _make(path, replace=True)
        return path.read_bytes()
    return None


def _is_key(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == _KEY_BYTES and any(path.read_bytes())


def _make(path: Path, replace: bool) -> None:
    make_dirs(path.parent)
    with write_file_atomic(path, replace=replace, private=True) as temporary:
        temporary.write_bytes(secrets.token_bytes(_KEY_BYTES))
