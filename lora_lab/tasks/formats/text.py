"""Bytes to text: the encoding is the one that was named, that of the file's mark, or UTF-8."""

from __future__ import annotations

import codecs

from lora_lab._util.warn import warn
from lora_lab.errors import TaskError, as_cause

_MARKS = {  # UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LIKELY = ("cp1252", "latin-1", "cp1251", "shift_jis", "gb18030")
_DENSE = ("shift_jis", "gb18030", "cp1251", "cp1252", "latin-1")  # where few letters are Latin
_HEAD = 4096  # bytes that tell whether every other one is NUL
_AROUND = 20  # bytes on either side of one that is shown


def decode(data: bytes, encoding: str | None, source: str) -> str:
    """Return a file's text, without its byte order mark.

    Args:
        data: the file.
        encoding: as `bytes.decode` takes it; None: the file's mark (BOM) tells it, or it is UTF-8.
        source: for messages.

    Raises:
        TaskError: a byte that cannot be, with its line and the encodings in which it can; an
            encoding that nobody knows, or that the file's mark contradicts.
    """
    mark = next((name for bom, name in _MARKS.items() if data.startswith(bom)), None)
    name = encoding or mark or "utf-8"
    try:
        canonical = codecs.lookup(name).name
        if mark is not None and not canonical.startswith(mark):
            raise TaskError(
                f"{source} begins with the mark of {mark}, so that it is not {name}; leave out "
                "encoding"
            )
        text = data.decode(name)
    except LookupError as error:
        raise TaskError(
            f"{source}: no encoding of text is called {name!r}; such are 'utf-8', 'cp1252', "
            "'latin-1', 'utf-16'"
        ) from as_cause(error)
    except UnicodeError as error:
        raise TaskError(_undecodable(data, name, error, source)) from as_cause(error)
    if mark is None and encoding is None:
        _refuse_unmarked_utf16(data, source)
    if mark is None and not canonical.startswith("utf") and not data.isascii():
        _warn_of_utf8(data, name, source)
    return text.removeprefix("\ufeff")


def _warn_of_utf8(data: bytes, name: str, source: str) -> None:
    if _reads(data, "utf-8"):
        start = next(i for i, byte in enumerate(data) if byte > 127)
        warn(
            f"{source} can be read as utf-8 too; as {name} it has "
            f"{_around(data, start, name)!r} where utf-8 has {_around(data, start, 'utf-8')!r}"
        )


def _undecodable(data: bytes, name: str, error: UnicodeError, source: str) -> str:
    start = min(getattr(error, "start", len(data)), len(data) - 1)
    line = data.count(b"\n", 0, start) + 1
    where = f"line {line} (byte {start:,}, 0x{data[start]:02x})"
    high = sum(byte > 127 for byte in _line(data, start))
    likely = _DENSE if high > 3 and 2 * high > len(_line(data, start)) else _LIKELY
    other = [other for other in ("utf-8", *likely) if other != name and _reads(data, other)]
    fix = "save it as utf-8"
    if other:
        shown = _around(data, start, other[0])
        fix = f"try encoding={other[0]!r}, which has {shown!r} there"
        fix += f" (or {', '.join(map(repr, other[1:]))})" if other[1:] else ""
    return f"{source} is not {name}: {where} is no letter in it; {fix}"


def _refuse_unmarked_utf16(data: bytes, source: str) -> None:
    """Refuse what is valid UTF-8 only because NUL is a letter."""
    head = data[:_HEAD]
    if head.count(0) > len(head) // 4:
        name = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
        raise TaskError(f"{source}: every other byte is 0; give encoding={name!r}")


def _reads(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeError:
        return False
    return True


def _line(data: bytes, start: int) -> bytes:
    """Return what stands on a line around a byte."""
    before = data[max(0, start - _AROUND) : start].rpartition(b"\n")[2]
    return before + data[start : start + _AROUND].partition(b"\n")[0]


def _around(data: bytes, start: int, name: str) -> str:
    return _line(data, start).decode(name, "ignore").strip()
