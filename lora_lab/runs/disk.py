"""What the disk is asked for, and its refusals in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
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


def fill(path: Path, write: Callable[[Path], object]) -> Path:
    """Make the folder `path` under another name, and rename it when all is on disk.

    Raises:
        RunError: the disk does not take it; what was there before is there still.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    before = path.with_name(f".{path.name}.old")
    with disk(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            for file in (*temporary.rglob("*"), temporary):
                sync(file)
            if path.exists():
                path.replace(before)  # aside first: nobody is to see half of it go
            temporary.replace(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            tidy(path.parent)
            raise
    shutil.rmtree(before, ignore_errors=True)
    return path


def tidy(folder: Path) -> None:
    """Finish or undo what a killed process left half done in a folder. Raises nothing."""
    for aside in folder.glob(".*.old"):
        whole = folder / aside.name.removeprefix(".").removesuffix(".old")
        if not whole.exists():
            with contextlib.suppress(OSError):
                aside.replace(whole)
        shutil.rmtree(aside, ignore_errors=True)
    for part in folder.glob(".*.tmp"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                part.unlink()


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
