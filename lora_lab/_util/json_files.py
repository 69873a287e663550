"""JSON that may come from anybody: a regular file of bounded size, with numbers and text that fit.

What is read ends in figures, tables and pages. A number of 400 digits has no float, and half a
surrogate pair no UTF-8: neither is let in, so that nothing behind has to expect it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lora_lab._util.files import open_own

MOST_BYTES = 64 * 2**20  # a run's config.json has some KB, the sites of a large model a few MB
_MOST_DIGITS = 18  # a whole number that JavaScript, NumPy and SQLite still hold


def read_json(path: Path) -> Any:
    """Return what a file holds.

    Raises:
        OSError: it is not there, or is a link, a pipe or a device.
        ValueError: it is too large, no JSON, too deep, or holds a number beyond what fits.
    """
    return parse_json(read_bytes(path, MOST_BYTES))


def read_bytes(path: Path, most: int) -> bytes:
    """Return a file's bytes.

    Args:
        path: of a regular file; no link is followed.
        most: bytes that are read.

    Raises:
        OSError: it is not there, or is a link, a pipe or a device.
        ValueError: it is larger.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"it has {size} bytes; at most {most} are read")
        return file.read(most)  # what is appended meanwhile may be there, too


def parse_json(text: bytes) -> Any:
    """Return what UTF-8 text holds; halves of surrogate pairs are replaced by U+FFFD.

    Raises:
        ValueError: it is no JSON, too deep, or holds a number beyond what fits.
    """
    try:
        value = json.loads(text.decode(), parse_int=_integer)
        return _whole_text(value) if b"\\ud" in text.lower() else value
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _whole_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_text(own) for own in value]
    if isinstance(value, dict):
        return {_whole_text(key): _whole_text(own) for key, own in value.items()}
    return value
