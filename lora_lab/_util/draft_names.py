"""What the drafts of a file are called: a disk takes 255 bytes, and a draft's name is longer."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 220  # bytes, that a draft's name has less than 255


def draft_stem(path: Path, most: int = _LONGEST) -> str:
    """Return a path's name, so many bytes of it that a draft's fits on the disk."""
    return os.fsdecode(os.fsencode(path.name)[:most])
