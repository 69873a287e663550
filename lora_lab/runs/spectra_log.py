"""spectra.npy: a table of singular values that grows row by row and can always be read.

A true .npy of records (step int32, values (n,) float32), so that `numpy.load` reads it as well.
A row is appended first and counted in the header afterwards; `read_log` goes by the file's size.
So whoever reads during an append, after a kill or after the disk was full gets all whole rows.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from lora_lab._util.files import disk_errors, is_hollow, open_own, write_all, write_file_atomic
from lora_lab._util.quiet import first_line
from lora_lab.errors import RunError, as_cause

SITES_FILE = "sites.json"
SPECTRA_FILE = "spectra.npy"
_MOST_BYTES = 2**30  # 400 rows of 10,000 matrices with 64 values each


class SpectraLog:
    """The file while it is written, by one thread.

    Args:
        path: replaced if it exists.
        width: singular values in a row.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path = path
        self._type = np.dtype([("step", "<i4"), ("values", "<f4", (width,))])
        self._file: io.FileIO | None = None
        self.steps: list[int] = []
        self._replace(b"")

    @classmethod
    def reopen(cls, path: Path, width: int, step: int) -> SpectraLog:
        """Go on with a file, without its rows of later steps than `step`.

        Raises:
            RunError: it cannot be read, or its rows have another width.
        """
        steps, values = read_log(path)
        if values.shape[1] != width:
            raise RunError(
                f"{path} has {values.shape[1]} singular values a row and {SITES_FILE} tells of "
                f"{width}; start a new run"
            )
        log = cls.__new__(cls)
        log.path, log._file = path, None
        log._type = np.dtype([("step", "<i4"), ("values", "<f4", (width,))])
        kept = np.zeros(int((steps <= step).sum()), log._type)
        kept["step"], kept["values"] = steps[: len(kept)], values[: len(kept)]
        log.steps = steps[: len(kept)].tolist()
        log._replace(kept.tobytes())
        return log

    def append(self, step: int, values: np.ndarray) -> None:
        """Add one row; it is with the operating system when this returns.

        Args:
            step: more than the last row's.
            values: (width,) float32.

        Raises:
            RunError: the disk does not take it.
        """
        row = np.array((step, values), self._type).tobytes()
        with disk_errors(self.path):
            if self._file is None:
                self._file = io.FileIO(open_own(self.path, os.O_RDWR), "r+b")
            self._file.seek(0, os.SEEK_END)
            write_all(self._file, row)
            self.steps.append(step)
            self._file.seek(0)
            write_all(self._file, self._header())

    def keep_every_other(self) -> None:
        """Drop the second row, the fourth and so on; the file is replaced whole.

        Raises:
            RunError: the disk does not take it.
        """
        steps, values = read_log(self.path)
        kept = np.zeros((len(steps) + 1) // 2, self._type)
        kept["step"], kept["values"] = steps[::2], values[::2]
        self.steps = self.steps[::2]
        self._replace(kept.tobytes())

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # every row was flushed when it was written
                file.close()

    def _replace(self, rows: bytes) -> None:
        self.close()
        with disk_errors(self.path), write_file_atomic(self.path) as temporary:
            temporary.write_bytes(self._header() + rows)

    def _header(self) -> bytes:
        """Return the .npy header. NumPy leaves room for the count to grow, so its size is fixed."""
        buffer = io.BytesIO()
        facts: dict[str, Any] = {
            "descr": npy.dtype_to_descr(self._type),
            "fortran_order": False,
            "shape": (len(self.steps),),
        }
        npy.write_array_header_1_0(buffer, facts)
        return buffer.getvalue()


def read_log(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole rows of a file that may still grow, or was cut off.

    Returns:
        steps (S,) int32, ascending, and values (S, width) float32.

    Raises:
        RunError: the file cannot be read, or is not what its name says.
    """
    try:
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            kind = _row_type(file)
            found = os.fstat(file.fileno())
            if is_hollow(found):
                raise ValueError("it is nearly all holes")
            if (size := found.st_size) > _MOST_BYTES:
                raise ValueError(f"it has {size} bytes; at most {_MOST_BYTES} are read")
            stored = file.read(_MOST_BYTES)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}; copy the run's folder again") from as_cause(
            error
        )
    rows = np.frombuffer(stored, kind, len(stored) // kind.itemsize)
    steps = rows["step"]
    # A computer that lost its power may leave zeros, or old blocks, at the end.
    falls = np.flatnonzero(np.diff(steps) <= 0)
    whole = slice(int(falls[0]) + 1 if len(falls) else len(rows))
    return steps[whole].copy(), rows["values"][whole].copy()


def _row_type(file: BinaryIO) -> np.dtype[Any]:
    """Return the type of a row; what is read next from the file are the rows.

    Raises:
        ValueError: the header is no table of spectra's.
    """
    try:
        magic = npy.read_magic(file)
        _, _, kind = npy.read_array_header_1_0(file)
        if magic == (1, 0) and kind.names == ("step", "values"):
            values = kind["values"]
            single = values.base == np.dtype("<f4") and len(values.shape) == 1
            if single and kind["step"] == np.dtype("<i4"):
                return kind
    except Exception as error:  # a damaged header raises whatever NumPy's parser runs into
        raise ValueError(f"it is no table of spectra ({first_line(error)})") from None
    raise ValueError("it is no table of spectra")
