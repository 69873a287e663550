"""Whose a file is: what another user can write to may say anything."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def stranger(path: Path) -> str | None:
    """Return why a file or folder is not to be trusted as one's own; None where it is.

    Own are those of this user or root that nobody else can write to; a group may if it is the
    user's own, as where each user has one. Windows keeps a profile's folder to its user by itself.
    """
    if os.name == "nt":
        return None
    found = path.stat()
    if not {path.lstat().st_uid, found.st_uid} <= {os.geteuid(), 0}:
        return "belongs to another user"
    group = found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()
    if group or found.st_mode & stat.S_IWOTH:
        return "can be written to by other users"
    return None
