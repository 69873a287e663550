"""What others unpack, as `datasets` does with a hub data set's files: how much is in it.

They write whatever comes to the disk, so each file is looked through before. So is what is packed
within it: builders read what lies in a folder, and pandas unpacks on by a file's name.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any

from lora_lab.errors import TaskError, as_cause
from lora_lab.tasks.formats.unpacked import bomb, check_messages, check_parquet, most_unpacked

_CHUNK = 2**20
_BLOCK = 512  # bytes at the start that tell what a file is; a header of tar's is as long
_DEEPEST = 8  # archives within each other
_STREAMS = {  # fsspec's names
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_UNSEEN = {b"7z\xbc\xaf\x27\x1c": "7-Zip", b"Rar!\x1a\x07": "RAR"}
_ZIP = b"PK\x03\x04"
_TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")  # the last: a stream of Arrow's
_BROKEN = (OSError, EOFError, zlib.error, LZMAError, zipfile.BadZipFile, tarfile.TarError)


def check_archive(path: Path, source: str) -> None:
    """Refuse a file that unpacks to more than texts do; what is no archive passes.

    Args:
        path: of the file.
        source: for errors.

    Raises:
        TaskError: it does, or is of a kind that is not looked into, or something in it.
    """
    with path.open("rb") as file:
        _Look(source, most_unpacked(path.stat().st_size)).into(file)


class _BrokenError(Exception):
    """It cannot be unpacked, by nobody."""


class _Look:
    """A look into one file.

    Args:
        source: for errors.
        most: bytes that it may unpack to, with all that is packed in it.
    """

    def __init__(self, source: str, most: int) -> None:
        self._source, self._most, self._left = source, most, most

    def into(self, file: IO[bytes], depth: int = 0) -> None:
        """Look into a file that can be sought in; one that only looks like an archive passes."""
        start = file.read(_BLOCK)
        file.seek(0)
        looks = {
            self._stream: start.startswith((*_UNSEEN, *_STREAMS)),
            self._table: start.startswith(_TABLES),
            self._tar: _is_tar(start),
            self._zip: zipfile.is_zipfile(file),  # by its end
        }
        for look in (look for look, may in looks.items() if may):
            file.seek(0)
            with contextlib.suppress(_BrokenError):
                look(file, depth + 1)

    def take(self, size: int) -> None:
        """Count bytes that are unpacked."""
        self._left -= size
        if self._left < 0:
            raise bomb(self._source)

    def _refusal(self, what: str) -> TaskError:
        return TaskError(
            f"{self._source} {what}, which is not looked into here; unpack it yourself if you "
            "trust it, and give the files"
        )

    def _table(self, file: IO[bytes], _: int) -> None:
        from pyarrow import ArrowInvalid

        start = file.read(_BLOCK)
        file.seek(0)
        try:
            if start.startswith(b"PAR1"):
                check_parquet(file, self._source, self._most)
            else:
                file.seek(8 if start.startswith(b"ARROW1") else 0)
                check_messages(file, self._source, self._most)
        except (ArrowInvalid, OSError) as error:
            raise _BrokenError from as_cause(error)

    def _stream(self, file: IO[bytes], depth: int) -> None:
        from fsspec.compression import compr

        start = file.read(_BLOCK)
        file.seek(0)
        marks = {**_UNSEEN, **_STREAMS}
        kind = next(kind for mark, kind in marks.items() if start.startswith(mark))
        if kind not in compr:
            raise self._refusal(f"is packed by {kind}")
        with compr[kind](file, mode="rb") as found:
            within = _reader(found, self.take)
            self._member(within, "", depth)
            while within.read(_CHUNK):
                pass

    def _tar(self, file: IO[bytes], depth: int) -> None:
        try:
            with tarfile.open(fileobj=file, mode="r|") as members:
                for member in members:
                    if member.issparse():
                        self.take(member.size)  # else it is no larger than the tar
                    found = members.extractfile(member) if member.isreg() else None
                    if found is not None:
                        self._member(_reader(found), member.name, depth)
        except tarfile.TarError as error:
            raise _BrokenError from as_cause(error)

    def _zip(self, file: IO[bytes], depth: int) -> None:
        try:
            parts = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise _BrokenError from as_cause(error)
        self.take(sum(part.file_size for part in parts.infolist()))
        for part in parts.infolist():
            try:
                found = parts.open(part)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
                continue  # encrypted, or packed as nobody here unpacks it
            with found, contextlib.suppress(_BrokenError):
                self._member(_reader(found), part.filename, depth)

    def _member(self, file: io.BufferedReader, name: str, depth: int) -> None:
        """Look into what is packed in what is packed."""
        start = file.peek(_BLOCK)[:_BLOCK]
        is_tar = _is_tar(start)
        packed = start.startswith((*_STREAMS, *_UNSEEN, *_TABLES, _ZIP))
        if not (is_tar or packed or name.lower().endswith(".zip")):
            return
        if depth > _DEEPEST:
            raise self._refusal(f"has more than {_DEEPEST} archives within each other")
        if is_tar:
            with contextlib.suppress(_BrokenError):
                self._tar(file, depth + 1)
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
            copy.seek(0)
            self.into(copy, depth)


class _Unpacked(io.RawIOBase):
    """What is unpacked as it is read; `_BrokenError` where that cannot be."""

    def __init__(self, file: IO[bytes], take: Callable[[int], None] | None) -> None:
        self._file, self._take = file, take

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._file.read(len(buffer))
        except _BROKEN as error:
            raise _BrokenError from as_cause(error)
        if self._take is not None:
            self._take(len(found))
        buffer[: len(found)] = found
        return len(found)


def _reader(file: IO[bytes], take: Callable[[int], None] | None = None) -> io.BufferedReader:
    """Return what reads a file on; `take` is told how many bytes."""
    return io.BufferedReader(_Unpacked(file, take), 2**16)


def _is_tar(start: bytes) -> bool:
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(start, tarfile.ENCODING, "surrogateescape")
        return True
    return False
