"""What others unpack, as `datasets` does with a hub data set's files: how much is in it.

They write whatever comes to the disk, so each file is looked through before.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from lora_lab.errors import TaskError
from lora_lab.tasks.formats.unpacked import bomb, check_messages, check_parquet, most_unpacked

_CHUNK = 2**20
_STREAMS = {  # fsspec's names
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_UNSEEN = {b"7z\xbc\xaf\x27\x1c": "7-Zip", b"Rar!\x1a\x07": "RAR"}


def check_archive(path: Path, source: str) -> None:
    """Refuse a file that unpacks to more than texts do; what is no archive passes.

    Args:
        path: of the file.
        source: for errors.

    Raises:
        TaskError: it does, or is of a kind that is not looked into.
    """
    most = most_unpacked(path.stat().st_size)
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"PAR1"):
            check_parquet(file, source, most)
        elif start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):  # a file of Arrow's, or a stream
            file.seek(8 if start.startswith(b"ARROW1") else 0)
            check_messages(file, source, most)
    if kind := next((kind for mark, kind in _UNSEEN.items() if start.startswith(mark)), None):
        raise TaskError(
            f"{source} is packed by {kind}, which is not looked into here; unpack it yourself if "
            "you trust it, and give the files"
        )
    if _size(path, start, most) > most:
        raise bomb(source)


def _size(path: Path, start: bytes, most: int) -> int:
    """Return the bytes that an archive unpacks to, as far as just above `most`; 0 of none."""
    import fsspec

    size = 0
    if stream := next((name for mark, name in _STREAMS.items() if start.startswith(mark)), None):
        with fsspec.open(str(path), "rb", compression=stream) as file:
            while size <= most and (chunk := file.read(_CHUNK)):
                size += len(chunk)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as parts:
            size = sum(part.file_size for part in parts.infolist())
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as members:
            size = sum(member.size for member in members)
    return size
