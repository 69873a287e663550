"""Folders of official layouts: train.tsv, dev.tsv and test.tsv, or what they are called there.

A file's part is told by its name ("devset.csv", "in_domain_train.tsv", "test_matched.tsv"); the
shards of a clone of the hub's ("data/train-00000-of-00002.parquet") are one file. So are WebNLG's
XML files, which lie in folders of these names ("train/1triples/Airport.xml").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_lab._util.files import user_path
from lora_lab._util.warn import warn
from lora_lab.errors import TaskError
from lora_lab.tasks import webnlg
from lora_lab.tasks.files import FORMATS, suffix_of
from lora_lab.tasks.table import Column, Table
from lora_lab.tasks.tables import read_files

_PARTS = {
    "training": {"train", "training", "trainset"},
    "validation": {"validation", "valid", "val", "dev", "devset"},
    "test": {"test", "testset"},
}
_BELOW = "data", "xml"  # where the hub's clones have their files, and WebNLG's releases
_SHARD = re.compile(r"-\d{5}-of-\d{5}(-\w+)?\Z")
_WORD = re.compile(r"[a-z]+")
_NO_ROWS = re.compile(r"\.tables\Z|_ids\Z")  # WikiSQL's tables, MRPC's lists of numbers
_WITH_ANSWERS = "_w_refs"  # E2E's test set, which has a twin without

Splits = Mapping[str, list[Path]]


def folder_of(name: Any, config_name: str | None) -> Path | None:
    """Return the folder that a name is, or that one of its configurations is; None: it is none."""
    if not isinstance(name, (str, Path)):
        return None
    path = user_path(name, TaskError)
    below = _configuration(path, config_name) if config_name else path
    return below if below.is_dir() and folder_splits(below) else None


def configurations(folder: Path) -> list[str]:
    """Return the names of the folders in it that have rows to train on."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and folder_splits(path))


def first_training_file(name: Any, config_name: str | None) -> Path | None:
    """Return the file that a name is, or the first one to train on in the folder that it is."""
    folder = folder_of(name, config_name)
    if folder is not None:
        splits = folder_splits(folder)
        return splits[_chosen(splits, "", {}, quiet=True)["training"]][0]
    path = user_path(name, TaskError) if isinstance(name, (str, Path)) else None
    return path if path is not None and path.is_file() else None


def folder_splits(folder: Path) -> dict[str, list[Path]]:
    """Return {a split's name: its files} of a folder that has one to train on, else {}."""
    for place in _places(folder):
        found: dict[str, list[Path]] = {}
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            stem = _stem(path)
            if path.is_file() and suffix_of(path) in FORMATS and _part_of(stem):
                found.setdefault(stem, []).append(path)
            elif path.is_dir() and _part_of(path.name) and (files := webnlg.files_in(path)):
                found.setdefault(path.name, []).extend(files)
        if any(_part_of(name) == "training" for name in found):
            return found
    return {}


def read_folder(
    folder: Path, title: str, given: Mapping[str, str], columns: Sequence[Column], **reading: Any
) -> dict[str, Table]:
    """Read the parts of a folder; see `tables.read_files`.

    Args:
        folder: with a split to train on.
        title: what messages call it.
        given: {"training", …: the split that is this part}, where somebody has said. Of a WebNLG
            test split "test_seen" and "test_unseen" are there as well.
        columns: those that are wanted.
        **reading: of files; see `tables.read_file`.
    """
    splits = folder_splits(folder)
    whole, domains = webnlg.whole_splits(given, splits)
    found = _chosen(splits, title, whole)
    for part, name in found.items():
        _refuse_twice(splits[name], title, part, _places(folder))
    parts = {part: read_files(splits[name], columns, **reading) for part, name in found.items()}
    return webnlg.of_domains(parts, domains)


def _chosen(
    splits: Splits, name: str, given: Mapping[str, str], quiet: bool = False
) -> dict[str, str]:
    """Return {"training", …: the split that is this part}; a warning tells of the others.

    Args:
        splits: of a folder.
        name: what messages call it.
        given: those that somebody has named.
        quiet: nothing is told.

    Raises:
        TaskError: there is no such split.
    """
    found: dict[str, str] = {}
    for part, named in given.items():
        split = _split_of(named, splits)
        if split is None:
            raise TaskError(
                f"{name} has no split {named!r} for the {part} rows; it has {', '.join(splits)}"
            )
        found[part] = split
    free = [split for split in splits if split not in found.values()]
    for part in _PARTS:
        likely = sorted((split for split in free if _part_of(split) == part), key=_rank)
        if part not in found and likely:
            found[part] = likely[0]
    unread = [split for split in free if split not in found.values() and not _is_twin(split, found)]
    if unread and not quiet:
        warn(
            f"{name}: {', '.join(unread)} is not read, but {', '.join(found.values())} only; such "
            f"a split is taken by its name, as validation={unread[0]!r} or test="
        )
    return {part: found[part] for part in _PARTS if part in found}


def _configuration(folder: Path, name: str) -> Path:
    """Return the folder of a configuration: "SST-2" for "sst2" too, which the hub calls it."""
    if (folder / name).is_dir() or not folder.is_dir():
        return folder / name
    alike = [path for path in folder.iterdir() if plain_name(path.name) == plain_name(name)]
    return alike[0] if len(alike) == 1 else folder / name


def plain_name(name: str) -> str:
    """Return what "SST-2" and "sst2" have in common."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _split_of(named: str, splits: Splits) -> str | None:
    """Return the split of that name, "dev_matched" for the hub's "validation_matched" too."""
    alike = [split for split in splits if _spoken(split) == _spoken(named)]
    return named if named in splits else alike[0] if len(alike) == 1 else None


def _spoken(split: str) -> list[str]:
    words = _WORD.findall(split.lower())
    return [next((part for part in _PARTS if word in _PARTS[part]), word) for word in words]


def _places(folder: Path) -> tuple[Path, ...]:
    """Return where the files of a folder's splits may lie."""
    return (folder, *(folder / name for name in _BELOW))


def _refuse_twice(files: Sequence[Path], title: str, part: str, places: Collection[Path]) -> None:
    """Refuse several files of one name that are no shards: the same rows, saved twice."""
    if not any(path.parent in places for path in files):  # WebNLG's, in a folder of their own
        return
    shards = all(_SHARD.search(_bare(path)) for path in files)
    if len(files) > 1 and not (shards and len(set(map(suffix_of, files))) == 1):
        names = " and ".join(path.name for path in files)
        raise TaskError(
            f"{title} has its {part} rows in {names}, which would be read one after the other; "
            "leave one of them there, or name the file itself"
        )


def _stem(path: Path) -> str:
    return _SHARD.sub("", _bare(path))


def _bare(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name[: -len(suffix_of(path)) or None]


def _part_of(stem: str) -> str | None:
    """Return the part that a file's name says; None of one that is no rows, or says several."""
    if _NO_ROWS.search(stem):
        return None
    words = set(_WORD.findall(stem.lower()))
    found = [part for part, names in _PARTS.items() if words & names]
    return found[0] if len(found) == 1 else None


def _rank(split: str) -> tuple[bool, bool, str]:
    """Return what puts the split of the usual name first, and of two twins the one with answers."""
    usual = any(split.lower() in names for names in _PARTS.values())
    return not split.endswith(_WITH_ANSWERS), not usual, split


def _is_twin(split: str, found: Mapping[str, str]) -> bool:
    """Return whether the same rows are read with their answers."""
    return f"{split}{_WITH_ANSWERS}" in found.values()
