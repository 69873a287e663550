"""What the disk is asked for, and its refusals in one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lora_lab.errors import RunError


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line that names the mend."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"cannot write {path}: {reason}; free some space or choose another output_dir"
        ) from error
    except RuntimeError as error:
        # torch.save and safetensors wrap the disk's errors in their own.
        if isinstance(error, RunError) or not _about_the_disk(error):
            raise
        raise RunError(
            f"cannot write {path}: {error}; free some space or choose another output_dir"
        ) from error


def _about_the_disk(error: RuntimeError) -> bool:
    words = ("no space left", "read-only", "file write failed", "unexpected pos", "i/o error")
    return any(word in str(error).lower() for word in words)
