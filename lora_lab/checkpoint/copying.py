"""An adapter's files, copied as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

from lora_lab._util.files import disk_errors
from lora_lab.checkpoint.locate import whole_folder
from lora_lab.checkpoint.replacing import copy_files, replace_adapter
from lora_lab.errors import AdapterError


def copy_adapter(source: Path, folder: str | Path) -> Path:
    """Copy an adapter from one folder into another, whose own adapter it replaces whole.

    Args:
        source: what `save_adapter` wrote.
        folder: made if missing.

    Returns:
        The folder.

    Raises:
        AdapterError: the disk does not take it.
    """
    folder, source = Path(folder), whole_folder(source)
    if folder.resolve() != source.resolve():
        with disk_errors(folder, AdapterError, "another folder"):
            replace_adapter(folder, lambda draft: copy_files(source, draft, shutil.copyfile))
    return folder
