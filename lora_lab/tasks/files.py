"""Which files a name stands for: the one of that name, else those that it is a pattern of."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_lab._util.files import user_path
from lora_lab._util.warn import warn
from lora_lab.errors import TaskError

Files = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

SEPARATED = (".csv", ".tsv", ".txt")
JSON = (".jsonl", ".ndjson", ".json")
ARROW = (".parquet", ".arrow", ".feather")
XML = ".xml"
FORMATS = (*SEPARATED, *JSON, *ARROW, ".xlsx", XML)


def suffix_of(path: Path) -> str:
    """Return a file's format, such as ".csv"; that of a .csv.gz too."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_file_name(name: Any) -> bool:
    """Return whether a task's name is a file of a known format, or a file at all.

    So are several files, a pattern of files, and a folder that `save_to_disk` wrote.
    """
    if not isinstance(name, (str, os.PathLike)):
        return True
    path = user_path(name, TaskError)
    return suffix_of(path) in FORMATS or path.is_file() or is_saved(path) or _is_pattern(str(name))


def is_saved(path: Path, splits: bool = False) -> bool:
    """Return whether a folder is one that `save_to_disk` wrote, or such a one of splits."""
    marks = ("dataset_dict.json",) if splits else ("dataset_dict.json", "state.json")
    return any((path / mark).is_file() for mark in marks)


def find_files(name: Files) -> list[Path]:
    """Return the files that a name, or each of several, stands for.

    A pattern is one only where no file has that very name; its files are sorted by name.

    Raises:
        TaskError: there are none.
    """
    if not isinstance(name, (str, os.PathLike)):
        found = [path for each in name for path in find_files(each)]
        if not found:
            raise TaskError("no file is given; name one")
        return found
    path = user_path(name, TaskError)
    if path.is_file() or is_saved(path):
        return [path]
    if path.is_dir():
        raise TaskError(is_a_folder(path))
    if not _is_pattern(str(path)):
        raise TaskError(f"there is no file {path}; look at the path (folder: {Path.cwd()})")
    found = _matching(path)
    if not found:
        raise TaskError(f"there is no file {path}, and as a pattern it fits none")
    if "*" not in str(path):
        names = ", ".join(file.name for file in found)
        warn(f"there is no file {path}; as a pattern it stands for {names}")
    return found


def is_a_folder(path: Path) -> str:
    """Return the line on a folder that holds nobody knows what."""
    return (
        f"{path} is a folder; name its files, such as {str(path / '*.parquet')!r} (a folder is "
        "read where save_to_disk wrote it, or where a file in it is called train)"
    )


def title(name: Files) -> str:
    """Return what messages call one file or several."""
    if isinstance(name, (str, os.PathLike)):
        return Path(name).name
    names = [Path(each).name for each in name]
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"


def absolute(name: Files) -> str | list[str]:
    """Return a name that stands for the same files wherever one is; a hub id as it is."""
    if not isinstance(name, (str, os.PathLike)):
        return [str(path.resolve()) for path in find_files(name)]
    path = user_path(name, TaskError)
    if path.is_file() or is_saved(path):
        return str(path.resolve())
    return [str(file.resolve()) for file in _matching(path)] or str(name)


def _matching(path: Path) -> list[Path]:
    if not _is_pattern(str(path)):
        return []
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    pattern = str(path.relative_to(folder))  # a folder's name is none
    found = (folder / file for file in sorted(glob.glob(pattern, root_dir=folder, recursive=True)))
    return [file for file in found if file.is_file()]


def _is_pattern(name: str) -> bool:
    return any(letter in name for letter in "*?[")
