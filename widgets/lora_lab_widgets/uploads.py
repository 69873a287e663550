"""A file that comes from the page in pieces, as a kernel elsewhere cannot read people's disks."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from lora_lab._util.files import disk_errors, make_dirs, write_file_atomic
from lora_lab._util.format import format_bytes
from lora_lab.errors import TaskError
from lora_lab.tasks.files import FORMATS, suffix_of

MOST = 200 * 2**20  # bytes of a file; what is larger is given by its path
_LONGEST = 200  # bytes of a name; disks take 255, and a draft's is longer
_ODD = re.compile(r"[^\w .()+-]")


class Upload:
    """One file on its way.

    Args:
        name: as the page calls it; folders in it are left out.

    Attributes:
        asked: the name as it was given.
        name: that of the file.

    Raises:
        TaskError: it is of no known format.
    """

    def __init__(self, name: str) -> None:
        plain = _ODD.sub("_", re.split(r"[\\/]", name)[-1])
        plain = plain.encode()[-_LONGEST:].decode(errors="ignore").lstrip(". ")
        if suffix_of(Path(plain)) not in FORMATS:
            raise TaskError(f"{plain or 'this'} is not of a known format; use {', '.join(FORMATS)}")
        self.asked, self.name = name, plain
        self._data = bytearray()

    def add(self, piece: str) -> None:
        """Take the next piece, base64.

        Raises:
            TaskError: the file is too large for this way, or a piece is damaged.
        """
        try:
            self._data += base64.b64decode(piece, validate=True)
        except (binascii.Error, ValueError):
            raise TaskError(f"{self.name} came damaged; choose it again") from None
        if len(self._data) > MOST:
            raise TaskError(
                f"{self.name} is larger than {format_bytes(MOST)}; put it on the kernel's machine "
                "and give its path"
            )

    def write(self, folder: Path) -> Path:
        """Write the file; another one of that name stays, and this one gets a number.

        Raises:
            TaskError: the disk does not take it.
        """
        suffixes = "".join(Path(self.name).suffixes[-2:] if self.name.endswith(".gz") else ())
        suffix = suffixes or Path(self.name).suffix
        stem, number, path = self.name.removesuffix(suffix), 1, folder / self.name
        with disk_errors(folder, TaskError, "another output_dir"):
            make_dirs(folder)
            while path.exists():
                if path.is_file() and path.read_bytes() == self._data:
                    return path
                number += 1
                path = folder / f"{stem}-{number}{suffix}"
            with write_file_atomic(path) as draft:
                draft.write_bytes(self._data)
        return path
