"""Who is at work on a run's folder: a lock that the system lets go of when its holder is gone.

Whoever only looks shares the lock for an instant with others who look: none of them takes another
for a holder, and a start waits until they have looked.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
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

LOCK_FILE = "lock.json"  # {"pid", "host", "process"} of the holder, or of the last one
_MOST_BYTES = 10_000  # of it that are read
_LOOKERS = 10.0  # seconds in which those who only look have looked
_HELD = 0.1  # seconds for which it is seen held before it is: earlier versions looked that way
_SHORT = 0.001  # seconds between two tries


class RunLock:
    """Holds a run's folder for this process, until `release` or the process's end.

    `kill -9` ends it too; a forked child holds nothing. Where a file system knows no locks, nobody
    is kept out.

    Args:
        folder: that is there.
        name: of the file in it that is locked.
    """

    def __init__(self, folder: Path, name: str = LOCK_FILE) -> None:
        self._path = folder / name
        self._file: IO[str] | None = None
        self._taken = False

    def acquire(self) -> None:
        """Take the folder; a no-op where it is held already.

        Raises:
            RunError: somebody else is at work on it.
            OSError: the disk does not take the file.
        """
        if not self.take():
            who = holder(self._path.parent) or {}
            raise RunError(
                f"run {self._path.parent.name} is running in process {who.get('pid', '?')} on "
                f"{who.get('host', '?')}; stop it there first"
            )

    def take(self, seconds: float = _HELD) -> bool:
        """Take the folder unless somebody has it for so long; return whether it is held now.

        Raises:
            OSError: the disk does not take the file.
        """
        if self._file is not None:
            return True
        try:
            with _opening:
                flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
                self._file = file = os.fdopen(open_own(self._path, flags), "a+", encoding="utf-8")
                _held.add(self)
            if not _take(file, seconds):
                self.release()
                return False
            if not _is_linked(file):
                file.truncate(0)
                file.write(json.dumps(_who()) + "\n")
                file.flush()
            self._taken = True
        except BaseException:  # Ctrl-C, too: an open file that nobody knows would hold the folder
            self.release()
            raise
        return True

    def is_at(self, folder: Path) -> bool:
        """Whether it holds a run's folder."""
        return self._taken and self._path == folder / LOCK_FILE

    def release(self) -> None:
        """Let go. Doing it twice is no error."""
        self._taken = False
        if self._file is not None:
            file, self._file = self._file, None
            _held.discard(self)
            with contextlib.suppress(OSError):
                file.close()


def holder(folder: Path) -> Mapping[str, Any] | None:
    """Return {"pid", "host", …} of the process at work on a run, None where none is."""
    try:
        with _opening:
            descriptor = open_own(folder / LOCK_FILE, os.O_RDONLY)
            with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
                if not _is_held(file):
                    return None  # closing gives it back
                if _is_linked(file) and any(lock.is_at(folder) for lock in list(_held)):
                    return _who()
                text = file.read(_MOST_BYTES) if sys.platform != "win32" else ""
    except OSError:
        return None  # no lock, or a folder that nobody can read
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def _is_linked(file: IO[str]) -> bool:
    """Whether a lock is another file, too, by a hard link: nothing is written into that."""
    return os.fstat(file.fileno()).st_nlink > 1


def _who() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "process": _process}


def is_here(who: Mapping[str, Any]) -> bool:
    """Whether a `holder` is this very process: other machines, and later ones, have its pid too."""
    return who.get("process") == _process


def _take(file: IO[str], seconds: float) -> bool:
    """Lock an open file for oneself; return False where somebody has it for so long."""
    begun = time.monotonic()
    while not _lock(file, shared=False):
        waited = time.monotonic() - begun
        if waited > (seconds if _is_held(file) else max(seconds, _LOOKERS)):
            return False
        _unlock(file)
        time.sleep(_SHORT)
    return True


if sys.platform == "win32":

    def _lock(file: IO[str], *, shared: bool) -> bool:  # noqa: ARG001
        """Lock the first byte, which nobody can read then."""
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        except OSError:
            return True  # the file system has no locks
        return True

    def _unlock(file: IO[str]) -> None:
        """Nothing: looking locks nothing."""

    def _is_held(file: IO[str]) -> bool:
        try:
            file.seek(0)
            file.read(1)
        except PermissionError:
            return True
        return False

else:

    def _lock(file: IO[str], *, shared: bool) -> bool:
        """Lock an open file, with others or alone; return False where it is held otherwise."""
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the file system has no locks
        return True

    def _unlock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)

    def _is_held(file: IO[str]) -> bool:
        """Whether somebody has the file for himself."""
        return not _lock(file, shared=True)


# A fork waits for it: else a child would keep an open lock file that it does not know of.
_opening = threading.RLock()
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()
_process = secrets.token_hex(8)  # what this process writes into its locks


def _forked() -> None:
    """Close a child's copies of the files: else they would hold the folders after their parent.

    The parent's own hold stays: no file is unlocked, a copy of it is closed.
    """
    global _opening, _process
    _opening = threading.RLock()
    _process = secrets.token_hex(8)
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=lambda: _opening.acquire(),
        after_in_parent=lambda: _opening.release(),
        after_in_child=_forked,
    )
