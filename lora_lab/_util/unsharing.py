"""Hard links: a file in a folder that somebody handed on can be one of mine, by a second name."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from lora_lab._util.files import open_own, write_file_atomic


def unshare(path: Path) -> None:
    """Give a file that has a second name somewhere, a hard link, a copy of its own.

    What grows in it, or is cut off it, would be so there: a stranger's folder can hold one of mine.

    Raises:
        OSError: it is no regular file, or the disk does not take the copy.
    """
    with (
        contextlib.suppress(FileNotFoundError),
        os.fdopen(open_own(path, os.O_RDONLY), "rb") as file,
    ):
        if os.fstat(file.fileno()).st_nlink > 1:
            with write_file_atomic(path) as draft, draft.open("wb") as copy:
                shutil.copyfileobj(file, copy)
