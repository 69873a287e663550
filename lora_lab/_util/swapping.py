"""Two paths that change places in one step, where the system can do that."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_AT_FDCWD = -100  # the names are relative to the working directory, where they are relative
_EXCHANGE = 2  # Linux' RENAME_EXCHANGE and macOS' RENAME_SWAP


def swap(one: Path, other: Path) -> bool:
    """Have two files or folders change places, whole at any instant; return whether they did.

    By renameat2 on Linux and renamex_np on macOS; False where system or file system has neither.
    """
    names = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return library.renamex_np(*names, ctypes.c_uint(_EXCHANGE)) == 0
        here = _AT_FDCWD
        return library.renameat2(here, names[0], here, names[1], ctypes.c_uint(_EXCHANGE)) == 0
    except (OSError, TypeError, AttributeError):  # Windows; a C library without them
        return False
