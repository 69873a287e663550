"""Files and folders that are whole or absent: all that is written goes through here.

What is written is made beside its place under a hidden name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_lab.errors import AdapterError, LoraLabError, RunError


@contextlib.contextmanager
def write_file_atomic(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a path to write to; the file stands under its own name when the block ends.

    Where the block raises, what was there before is there still.

    Args:
        path: in a folder that is there.
        replace: False: several processes may write it at once, and the first one's stays.

    Raises:
        OSError: the disk does not take it.
    """
    temporary = _temporary(path, shared=not replace)
    try:
        yield temporary
        sync(temporary)
        if replace:
            temporary.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a file as UTF-8; see `write_file_atomic`."""
    with write_file_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_all(file: io.RawIOBase, data: bytes) -> None:
    """Write all of it to a file without a buffer, which a forked child would write once more."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


def write_dir_atomic(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """Have `write` fill a folder, which stands under its own name when all of it is on the disk.

    Where `write` raises, what was there before is there still.

    Args:
        path: its parents are made.
        write: is given an empty folder.
        replace: False: several processes may make it at once, and the first one's stays.

    Raises:
        OSError: the disk does not take it.
    """
    temporary = _temporary(path, shared=not replace)
    before = path.with_name(f".{path.name}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for file in (*temporary.rglob("*"), temporary):
            sync(file)
        if replace and path.exists():
            shutil.rmtree(before, ignore_errors=True)
            path.replace(before)  # aside first: nobody is to see half of it go
        try:
            temporary.replace(path)
        except OSError:
            if replace or not path.is_dir():
                raise
        sync(path.parent)
    except BaseException:
        if before.exists() and not path.exists():
            before.replace(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def new_dir(folder: str | Path) -> Iterator[Path]:
    """Yield a folder to write into; what is in it stands in `folder` when the block ends.

    Where the block raises, nothing is left behind.

    Args:
        folder: its parents are made; an empty one may be there already.

    Raises:
        AdapterError: the folder holds something, or the disk does not take it.
    """
    folder = Path(folder).expanduser().absolute()
    refuse_taken(folder)
    temporary = _temporary(folder)
    with disk_errors(folder, AdapterError, "another folder"):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            # Not the folder itself: it may be somebody's working directory.
            folder.mkdir(exist_ok=True)
            for entry in sorted(temporary.iterdir()):
                entry.replace(folder / entry.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


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


def recover_dir(folder: Path) -> None:
    """Finish or undo what a killed process left half done in a folder. Raises nothing."""
    for aside in folder.glob(".*.old"):
        whole = folder / aside.name.removeprefix(".").removesuffix(".old")
        if not whole.exists():
            with contextlib.suppress(OSError):
                aside.replace(whole)
        shutil.rmtree(aside, ignore_errors=True)
    for temporary in folder.glob(".*.tmp"):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                temporary.unlink()


def cache_folder() -> Path:
    """Return where LoRA Lab keeps what it can make again: `$LORA_LAB_CACHE`, else `~/.cache`."""
    given = os.environ.get("LORA_LAB_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "lora-lab"


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
def disk_errors(
    path: Path, kind: type[LoraLabError] = RunError, other_place: str = "another output_dir"
) -> Iterator[None]:
    """Turn what the disk refuses into one line that names the fix.

    Args:
        path: what the block writes.
        kind: of the error that is raised.
        other_place: what the line tells to choose instead.
    """
    try:
        yield
    except Exception as error:
        if not _is_from_disk(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise kind(
            f"cannot write {path}: {reason}; free some space or choose {other_place}"
        ) from error


def _temporary(path: Path, shared: bool = False) -> Path:
    own = f".{secrets.token_hex(4)}" if shared else ""
    return path.with_name(f".{path.name}{own}.tmp")


def _is_from_disk(error: Exception) -> bool:
    """Whether the disk refused; torch.save and safetensors wrap its errors in their own."""
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    words = ("no space left", "read-only", "file write failed", "unexpected pos", "i/o error")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
