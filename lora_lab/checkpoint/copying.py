"""An adapter's files, copied as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_lab._util.files import write_file_atomic
from lora_lab.checkpoint.files import (
    CONFIG_FILE,
    NATIVE_CONFIG_FILE,
    NATIVE_WEIGHTS_FILE,
    WEIGHTS_FILE,
)
from lora_lab.checkpoint.head_classes import CLASSES_FILE
from lora_lab.checkpoint.native import parts_in, remove_parts

_FILES = WEIGHTS_FILE, NATIVE_WEIGHTS_FILE, CLASSES_FILE, CONFIG_FILE, NATIVE_CONFIG_FILE


def copy_adapter(source: Path, folder: str | Path) -> Path:
    """Copy an adapter from one folder into another, whose own adapter it replaces.

    Args:
        source: what `save_adapter` wrote.
        folder: made if missing; each file is written under a temporary name and renamed.

    Returns:
        The folder.
    """
    folder = Path(folder)
    if folder.resolve() == source.resolve():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    parts = parts_in(source)
    before = [part for part in parts_in(folder) if part.name not in {own.name for own in parts}]
    for part in parts:
        copy_adapter(part, folder / part.name)
    for name in _FILES:
        if (source / name).is_file():
            with write_file_atomic(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
        else:
            (folder / name).unlink(missing_ok=True)
    remove_parts(before)
    return folder
