"""Who is at work on a run's folder: a lock that the system lets go of when its holder is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lora_lab._util.files import open_own
from lora_lab.errors import RunError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE = "lock.json"  # {"pid", "host"} of the holder, or of the last one


class RunLock:
    """Holds a run's folder for this process, until `release` or the process's end.

    `kill -9` ends it too; a forked child holds nothing. Where a file system knows no locks, nobody
    is kept out.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the folder; a no-op where it is held already.

        Raises:
            RunError: somebody else is at work on it.
            OSError: the disk does not take the file.
        """
        if self._file is not None:
            return
        self._file = file = os.fdopen(
            open_own(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+", encoding="utf-8"
        )
        try:
            if not _lock(file):
                who = holder(self._path.parent) or {}
                raise RunError(
                    f"run {self._path.parent.name} is running in process {who.get('pid', '?')} on "
                    f"{who.get('host', '?')}; stop it there first"
                )
            _held.add(self)
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
            file.flush()
        except BaseException:  # Ctrl-C, too: an open file that nobody knows would hold the folder
            self.release()
            raise

    def release(self) -> None:
        """Let go. Doing it twice is no error."""
        if self._file is not None:
            file, self._file = self._file, None
            _held.discard(self)
            with contextlib.suppress(OSError):
                file.close()


def holder(folder: Path) -> Mapping[str, Any] | None:
    """Return {"pid", "host"} of the process that is at work on a run, None where none is."""
    try:
        descriptor = open_own(folder / LOCK_FILE, os.O_RDWR)
        with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
            if _lock(file):
                return None  # closing gives it back
            text = file.read() if sys.platform != "win32" else ""
    except OSError:
        return None  # no lock, or a folder that nobody can write to
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def _lock(file: IO[str]) -> bool:
    """Lock an open file; return False where another open file has it."""
    try:
        if sys.platform == "win32":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # the file system has no locks
    return True


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forked() -> None:
    """Close a child's copies of the files: else they would hold the folders after their parent.

    The parent's own hold stays: no file is unlocked, a copy of it is closed.
    """
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
