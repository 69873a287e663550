"""Files and folders that are whole or absent: all that is written goes through here.

What is written is made beside its place under a hidden name of its own, which nobody can have put a
link at, flushed to the disk, and renamed; then the folder is flushed, which has the new name.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_lab._util.draft_names import draft_stem
from lora_lab._util.swapping import swap
from lora_lab.errors import AdapterError, LoraLabError, RunError, as_cause

_ODD = "it is a link or no regular file; remove it"
_HOLLOW = 64  # bytes that a file claims for one on the disk; compression comes to less
_OS_ERROR = re.compile(r"\(os error (\d{1,4})\)")  # of Rust
_TORCH_WORDS = "no space left|read-only|file write failed|unexpected pos|i/o error|iostream error"
_TOO_LARGE = os.strerror(errno.EFBIG)
_SHOWN = 60  # letters of a path that can be none
_STALE = 3600.0  # seconds after which a draft is nobody's any more: whoever wrote it was killed


@contextlib.contextmanager
def write_file_atomic(path: Path, *, replace: bool = True, private: bool = False) -> Iterator[Path]:
    """Yield a path to write to; the file stands under its own name when the block ends.

    Where the block raises, what was there before is there still.

    Args:
        path: in a folder that is there.
        replace: False: several processes may write it at once, and the first one's stays.
        private: nobody else may read it, at no moment.

    Raises:
        OSError: the disk does not take it.
    """
    temporary = _draft(path)
    try:
        temporary.touch(mode=0o600 if private else 0o666, exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        _follow_umask(temporary, mode)
        sync(temporary)
        if replace:
            temporary.replace(path)
        else:
            _link(temporary, path)
        sync(path.parent)
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
    make_dirs(path.parent)
    temporary, before = _draft(path), aside(path)
    try:
        temporary.mkdir()
        write(temporary)
        _follow_umask_in(temporary)
        if path.is_dir():
            shutil.copymode(path, temporary)  # a folder that a group shares stays so
        _sync_all(temporary)
        if not (replace and path.exists() and swap(temporary, path)):
            if replace and path.exists():
                _remove(before)
                path.replace(before)  # aside first: nobody is to see half of it go
            try:
                temporary.replace(path)
            except OSError:
                if replace or not path.is_dir():
                    raise
        sync(path.parent)
    except BaseException:
        recover_aside(path)
        raise
    finally:
        _remove(temporary)  # what was there before, if they were swapped
    _remove(before)


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
    temporary = _draft(folder)
    with disk_errors(folder, AdapterError, "another folder"):
        try:
            make_dirs(folder.parent)
            temporary.mkdir()
            yield temporary
            _follow_umask_in(temporary)
            _sync_all(temporary)
            if folder.exists():  # and is empty; it may be somebody's working directory, so it stays
                settings = [*temporary.glob("*.json")]  # by which it is known for what it is
                for part in ({*temporary.iterdir()} - {*settings}, settings):
                    for entry in part:
                        entry.replace(folder / entry.name)
                    sync(folder)
            else:
                temporary.replace(folder)
                sync(folder.parent)
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
    for old in folder.glob(".*.old"):
        recover_aside(folder / old.name.removeprefix(".").removesuffix(".old"))
        shutil.rmtree(old, ignore_errors=True)
    for temporary in folder.glob(".*.tmp"):
        _remove(temporary)


def remove_dir(folder: Path) -> None:
    """Remove a folder, which is whole or gone at any instant: it loses its name first.

    Raises:
        OSError: the disk does not let it go.
    """
    doomed = _draft(folder)
    folder.rename(doomed)
    sync(folder.parent)
    shutil.rmtree(doomed)


def put_aside(path: Path) -> Path:
    """Give what is in the way a name of its own beside, which ends in ".damaged"; return that.

    Raises:
        OSError: the disk does not let it go.
    """
    return path.rename(path.with_name(f"{path.name}.{secrets.token_hex(4)}.damaged"))


def present(path: Path) -> Path:
    """Return where a folder is to be read: put aside, if a killed process left it so."""
    return path if path.exists() or not aside(path).exists() else aside(path)


def recover_aside(path: Path) -> None:
    """Put back a folder that was put aside for a new one that never came. Raises nothing."""
    with contextlib.suppress(OSError):
        if not path.exists():
            aside(path).replace(path)


def make_dirs(folder: Path) -> None:
    """Make a folder and those above it; those that are new are on the disk when this returns.

    Raises:
        OSError: the disk does not take them, or a file is in the way.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        sync(place.parent)


def open_own(path: str | Path, flags: int, *, follow: bool = False) -> int:
    """Open a regular file, such as one that grows in place; return its descriptor.

    Args:
        path: a link there is not followed: it may come from a stranger, and lead anywhere.
        flags: `os.open`'s.
        follow: a link to a regular file, as a hub's cache has them, where it is only read.

    Raises:
        OSError: there is a link, or no regular file.
    """
    beside = getattr(os, "O_NONBLOCK", 0)  # a pipe would block
    beside |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    beside |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(path, flags | beside, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise OSError(error.errno, _ODD, str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _ODD, str(path))
    return descriptor


def is_hollow(found: os.stat_result) -> bool:
    """Return whether a file is nearly all holes: it was made to fill memory, not to be read.

    Where the file system tells of no blocks, it is not known.
    """
    return 0 < getattr(found, "st_blocks", 0) * 512 * _HOLLOW < found.st_size


def cache_folder() -> Path:
    """Return where LoRA Lab keeps what it can make again: `$LORA_LAB_CACHE`, else `~/.cache`."""
    given = os.environ.get("LORA_LAB_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "lora-lab"


def user_path(given: str | os.PathLike[str], kind: type[LoraLabError] = LoraLabError) -> Path:
    """Return a path that somebody typed, whose "~" and "~name" are home folders.

    Args:
        given: a file's or a folder's, there or not; or a name that may be one.
        kind: of the error.

    Raises:
        LoraLabError: it can be no path: nobody here is called so, it is too long, or it has a NUL
            or half a letter.
    """
    path, told = Path(given), repr(os.fspath(given)[:_SHOWN])
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise kind(
            f"{told} begins with the home folder of a user that this computer does not know; "
            "write the folder out"
        ) from as_cause(error)
    try:
        path.lstat()
    except ValueError as error:
        raise kind(f"{told} is no path: it has a character that none may have") from as_cause(error)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            long = f"{told}… ({len(os.fspath(given)):,} letters) is longer than a path may be"
            raise kind(f"{long}; look at what was given") from as_cause(error)
    return path


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise  # but for file systems, such as network drives, that flush no folder
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
        if (reason := disk_reason(error)) is None:
            raise
        fix = "raise the limit (ulimit -f)" if reason == _TOO_LARGE else "free some space"
        raise kind(f"cannot write {path}: {reason}; {fix} or choose {other_place}") from as_cause(
            error
        )


def _draft(path: Path) -> Path:
    """Return a free name beside a path; drafts of it that were left by the killed are removed."""
    remove_drafts(path, _STALE)
    return path.with_name(f".{draft_stem(path)}.{secrets.token_hex(8)}.tmp")


def remove_drafts(path: Path, older: float = 0.0) -> None:
    """Remove the drafts of a path that nobody writes any more. Raises nothing.

    Args:
        path: of what they were to become.
        older: seconds; 0: all of them.
    """
    for old in path.parent.glob(f".{glob.escape(draft_stem(path))}.*.tmp"):
        with contextlib.suppress(OSError):
            if not older or time.time() - old.lstat().st_mtime > older:
                _remove(old)


def aside(path: Path) -> Path:
    """Return where a folder lies while another takes its place, where nothing can swap them."""
    return path.parent / f".{draft_stem(path, 250)}.old"


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if the disk lets it go."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _link(file: Path, path: Path) -> None:
    """Give a file another name, unless that is taken."""
    try:
        os.link(file, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not os.path.lexists(path):
            file.replace(path)


def _follow_umask_in(folder: Path) -> None:
    """Do so with the files of a folder that was made just now."""
    mode = folder.stat().st_mode & 0o666  # nobody can ask for the umask without setting it
    for path in folder.rglob("*"):
        _follow_umask(path, mode)


def _follow_umask(path: Path, mode: int) -> None:
    """Open to others what a library wrote for its user alone, as safetensors does."""
    if stat.S_IMODE(path.lstat().st_mode) == 0o600:
        path.chmod(stat.S_IMODE(mode))


def _sync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def disk_reason(error: Exception) -> str | None:
    """Return in the system's words why the disk refused; None where something else failed.

    torch and safetensors have words of their own, with the system's number in them or without.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if number := _OS_ERROR.search(str(error)):
        return os.strerror(int(number[1]))
    from_disk = isinstance(error, RuntimeError) and re.search(_TORCH_WORDS, str(error), re.I)
    if from_disk or type(error).__name__ == "SafetensorError":
        return "the disk took only a part of it"
    return None
