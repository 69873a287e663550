"""JSON that may come from anybody: a regular file of bounded size, with numbers and text that fit.

What is read ends in figures, tables and pages. A number of 400 digits has no float, and half a
surrogate pair no UTF-8: neither is let in, so that nothing behind has to expect it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from lora_lab._util.files import is_hollow, open_own

MOST_BYTES = 64 * 2**20  # a run's config.json has some KB, the sites of a large model a few MB
_MOST_DIGITS = 18  # a whole number that JavaScript, NumPy and SQLite still hold
_SAME_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * (_MOST_DIGITS + 1)  # or what looks like one
_DEEPEST = 32  # lists and objects in each other; those that we write have at most ten


def read_json(path: str | Path, kind: Any = Any) -> Any:
    """Return what a file holds.

    Args:
        path: of a regular file; no link is followed.
        kind: the schema that it fits; see `fitted`.

    Raises:
        OSError: it is not there, or is a link, a pipe or a device.
        ValueError: it is too large, no JSON, too deep, holds a number beyond what fits, or does
            not fit the schema.
    """
    return fitted(parse_json(read_bytes(path, MOST_BYTES)), kind)


def fitted(value: Any, kind: Any) -> Any:
    """Return plain values as a schema has them: a dataclass, or a TypedDict without other keys.

    Args:
        value: as `parse_json` returns it.
        kind: a type that msgspec knows, with limits as `msgspec.Meta`.

    Raises:
        ValueError: they do not fit; the line names the place.
    """
    try:
        return msgspec.convert(value, kind, str_keys=True)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at ")
        where = place.removeprefix("`key` in ").strip("`").removeprefix("$").removeprefix(".")
        raise ValueError(f"{where}: {said}" if where else said) from None
    except (IndexError, KeyError, TypeError, RuntimeError):  # a tensor that was asked for keys
        raise ValueError("a tensor stands where plain values belong") from None


def fields_of(value: Any, kind: Any) -> dict[str, Any]:
    """Return the keys of an object that fit a TypedDict's, each by itself; {} of no object."""
    if isinstance(value, dict) and fits(value, kind):
        return value
    return {
        key: own
        for key, own in (value.items() if isinstance(value, dict) else ())
        if key not in kind.__annotations__ or fits({key: own}, kind)
    }


def misfit(values: Mapping[str, Any], kind: Any) -> str | None:
    """Return the first key whose value does not fit a TypedDict's type for it; None: all fit."""
    own = (key for key in kind.__annotations__ if key in values)
    return next((key for key in own if not fits({key: values[key]}, kind)), None)


def words_of(kind: Any, key: str) -> str:
    """Return how a TypedDict's type describes itself to people; see `msgspec.Meta`."""
    hint = get_type_hints(kind, include_extras=True)[key]
    return next(meta.description for meta in hint.__metadata__ if meta.description)


def fits(value: Any, kind: Any) -> bool:
    """Whether plain values fit a schema; see `fitted`."""
    try:
        fitted(value, kind)
    except ValueError:
        return False
    return True


def read_bytes(path: str | Path, most: int, *, follow: bool = False) -> bytes:
    """Return a file's bytes.

    Args:
        path: of a regular file.
        most: bytes that are read.
        follow: links to one.

    Raises:
        OSError: it is not there, or is a link, a pipe or a device.
        ValueError: it is larger.
    """
    with io.FileIO(open_own(path, os.O_RDONLY, follow=follow)) as file:
        found = os.fstat(file.fileno())
        if is_hollow(found):
            raise ValueError("it is nearly all holes")
        if (size := found.st_size) > most:
            raise ValueError(f"it has {size} bytes; at most {most} are read")
        return file.read(size)


def parse_json(text: bytes, objects: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return what UTF-8 text holds; halves of surrogate pairs are replaced by U+FFFD.

    Args:
        text: as it stands in a file.
        objects: makes something of the (key, value) of each object; None: a dict.

    Raises:
        ValueError: it is no JSON, too deep, or holds a number beyond what fits.
    """
    value = _decoded(text, objects)
    if text.count(b"[") + text.count(b"{") > _DEEPEST:
        _check_depth(value)
    return whole_text(value) if b"\\ud" in text.lower() else value


def _decoded(text: bytes, objects: Callable[[list[tuple[str, Any]]], Any] | None) -> Any:
    if objects is None and _LONG_NUMBER not in text.translate(_SAME_DIGITS):
        with contextlib.suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return msgspec.json.decode(text)  # in a fifth of the time, and stricter
    return parse_text(text.decode(), parse_int=_integer, object_pairs_hook=objects)


def parse_text(text: str, **hooks: Any) -> Any:
    """Return what a text of somebody's data holds: numbers of any size.

    Args:
        text: JSON.
        **hooks: of `json.loads`.

    Raises:
        ValueError: it is no JSON, or too deep.
    """
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise ValueError(_DEEP) from None
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(value)
    return value


_DEEP = "it is nested too deep"


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, (list, dict)) else []
    for _ in range(_DEEPEST):
        inner = (own.values() if isinstance(own, dict) else own for own in level)
        level = [own for each in inner for own in each if isinstance(own, (list, dict))]
        if not level:
            return
    raise ValueError(_DEEP)


def _integer(digits: str) -> int:
    if (count := len(digits.lstrip("-"))) > _MOST_DIGITS:
        raise ValueError(f"a number has {count} digits")
    return int(digits)


def whole_text(value: Any) -> Any:
    """Return plain values with surrogate pairs joined, and U+FFFD for halves of them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [whole_text(own) for own in value]
    if isinstance(value, dict):
        return {whole_text(key): whole_text(own) for key, own in value.items()}
    return value
