"""An adapter in a folder, replaced by another: at any instant the older one is there, or the new.

A folder with nothing but an adapter in it is swapped for the new one. Where other things are in it,
which are nobody's here to touch, or the folder itself has to stay, the files change one by one:

    .adapter-new/      the new adapter, until its files are in their places
    .adapter-before/   the older one; who reads the folder takes it while there is no config above
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_lab._util.files import make_dirs, sync, write_dir_atomic
from lora_lab.checkpoint.files import (
    CONFIG_FILE,
    NATIVE_CONFIG_FILE,
    NATIVE_WEIGHTS_FILE,
    WEIGHTS_FILE,
)
from lora_lab.checkpoint.head_classes import CLASSES_FILE
from lora_lab.checkpoint.locate import BEFORE, holds_adapter, whole_folder
from lora_lab.checkpoint.native import parts_in

_NEW = ".adapter-new"
_CONFIGS = CONFIG_FILE, NATIVE_CONFIG_FILE
_OTHERS = WEIGHTS_FILE, NATIVE_WEIGHTS_FILE, CLASSES_FILE
_FILES = (*_CONFIGS, *_OTHERS)


def replace_adapter(folder: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill an empty folder, and put what it wrote in the place of an older adapter.

    Args:
        folder: made if missing. What is no adapter's in it stays.
        write: raises: then the folder is as it was.

    Raises:
        OSError: the disk does not take it.
    """
    folder = folder.resolve()
    if not folder.exists() or _can_be_swapped(folder):
        write_dir_atomic(folder, write)
    else:
        _file_by_file(folder, write)


def adapter_files(folder: Path) -> Iterator[Path]:
    """Yield the files of the adapter in a folder, those of a combination's parts too."""
    for part in parts_in(folder):
        yield from adapter_files(part)
    yield from (folder / name for name in _FILES if (folder / name).is_file())


def copy_files(source: Path, folder: Path, copy: Callable[[Path, Path], object]) -> None:
    """Copy the files of the adapter in a folder into another one by `copy(from, to)`."""
    for file in adapter_files(source):
        to = folder / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        copy(file, to)


def _can_be_swapped(folder: Path) -> bool:
    """Whether nothing else is in a folder, and nobody needs this very one."""
    own = set(adapter_files(folder))
    within = own | {parent for file in own for parent in file.parents}
    return (
        bool(own)
        and all(path in within for path in folder.rglob("*"))
        and not os.path.ismount(folder)
        and not Path.cwd().is_relative_to(folder)
        and os.access(folder.parent, os.W_OK)
    )


def _file_by_file(folder: Path, write: Callable[[Path], object]) -> None:
    new, before = folder / _NEW, folder / BEFORE
    try:
        write_dir_atomic(new, write)
        if (held := whole_folder(folder)) == folder and holds_adapter(folder):
            write_dir_atomic(before, lambda draft: copy_files(folder, draft, _link))
        old = [file.relative_to(held) for file in adapter_files(held)]
        for config in _CONFIGS:
            (folder / config).unlink(missing_ok=True)
        sync(folder)  # from here on the older one is read from beside
        for name in old:
            (folder / name).unlink(missing_ok=True)
        for parent in {name.parent for name in old} - {Path()}:
            with contextlib.suppress(OSError):  # something else is in it
                (folder / parent).rmdir()
        files = [file.relative_to(new) for file in adapter_files(new)]
        for name in sorted(files, key=lambda name: name.name in _CONFIGS and name.parent == Path()):
            make_dirs((folder / name).parent)
            sync(folder)
            (new / name).replace(folder / name)
            sync((folder / name).parent)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file.resolve(), to)
    except OSError:  # a file system without links
        shutil.copyfile(file, to)
