"""New folders and files that are whole or absent: what is exported appears when all is written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lora_lab.errors import AdapterError


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a folder to write into; what is in it stands under its own name when the block ends.

    Where the block raises, nothing is left behind.

    Args:
        folder: its parents are made; an empty one may be there already.

    Raises:
        AdapterError: the folder holds something, or the disk does not take it.
    """
    folder = Path(folder).expanduser().absolute()
    refuse_taken(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            # Not the folder itself: it may be somebody's working directory.
            folder.mkdir(exist_ok=True)
            for entry in sorted(partial.iterdir()):
                entry.replace(folder / entry.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file stands under its own name when the block ends.

    Raises:
        AdapterError: the disk does not take it.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def refuse_taken(folder: Path) -> None:
    """Raise unless a path is free for a new folder.

    Raises:
        AdapterError: there is a file, or a folder that holds something.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "holds files" if folder.is_dir() else "is a file"
        raise AdapterError(f"{folder} {what} already; name a new or empty folder")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AdapterError(
            f"cannot write {path}: {reason}; free some space or name another place"
        ) from error
