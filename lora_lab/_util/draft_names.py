"""What the drafts of a file are called: a disk takes names of 255 bytes, and a draft's is longer."""

from __future__ import annotations

import os
from pathlib import Path

_LONGEST = 220  # bytes, that a draft's name has less than 255


def draft_stem(path: Path) -> str:
    """Return a path's name, so much of it that a draft's fits on the disk."""
    return os.fsdecode(os.fsencode(path.name)[:_LONGEST])
