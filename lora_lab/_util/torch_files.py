"""`torch.load` of what may come from anybody: no more memory than the file has bytes.

`weights_only=True` calls nothing. But it unpacks what an archive has compressed, and hands out
tensors that are a million times their one number, and containers that hold each other.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lora_lab._util.files import is_hollow, open_own

_MOST_PICKLED = 64 * 2**20  # bytes; of a state with 10,000 tensors there are 3 MB
_MOST_VALUES = 1_000_000  # that containers hold


def load_plain(path: Path, *, follow: bool = False) -> Any:
    """Return what `torch.save` wrote: dense tensors on the CPU, numbers, texts and containers.

    Args:
        path: of a regular file.
        follow: links to one.

    Raises:
        OSError: it is not there, or is a link, a pipe or a device.
        ValueError: it holds more than it has bytes, or something else.
        Exception: zipfile's, pickle's and torch's own, of a damaged file.
    """
    import torch

    with os.fdopen(open_own(path, os.O_RDONLY, follow=follow), "rb") as file:
        found = os.fstat(file.fileno())
        if is_hollow(found):
            raise ValueError("it is nearly all holes")
        size = found.st_size
        pickled = _pickled_bytes(file, size)
        if pickled > _MOST_PICKLED:
            raise ValueError(f"{pickled} bytes of it are no tensors")
    value = torch.load(path, map_location="cpu", weights_only=True)
    _check(value, size)
    return value


def damaged_part(path: Path) -> str | None:
    """Return the name of a part that is not as `torch.save` wrote it; None where all are.

    `torch.load` looks at no checksum: a block of zeros comes back as zeros.

    Raises:
        OSError, zipfile.BadZipFile: no archive can be read there.
    """
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _pickled_bytes(file: BinaryIO, size: int) -> int:
    """Return how many bytes are unpickled, of a file in torch's older format at most.

    Raises:
        ValueError: an archive whose parts are compressed, or lie in each other.
    """
    if not zipfile.is_zipfile(file):
        return 0  # torch's older format has its tensors behind each other, as they are
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > size:
        raise ValueError("it is compressed, as torch.save writes none")
    return max((p.file_size for p in parts if p.filename.endswith("data.pkl")), default=0)


def _check(value: Any, size: int) -> None:
    """Raise `ValueError` where a value holds more than a file of so many bytes has."""
    import torch

    left, waiting = _MOST_VALUES, [value]
    while waiting:
        own = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError("its containers hold each other")
        if isinstance(own, torch.Tensor):
            plain = own.layout is torch.strided and own.device.type == "cpu"
            if not plain or own.is_quantized or own.nbytes > size:
                raise ValueError("a tensor in it is larger than the file, or is not dense")
        elif isinstance(own, Mapping):
            waiting += own.keys()
            waiting += own.values()
        elif isinstance(own, (list, tuple, set, frozenset)):
            waiting += own
