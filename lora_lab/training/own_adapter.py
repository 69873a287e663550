"""A run's own adapter, wherever it is: on the model, or only in the run's folder any more.

Every run attaches under the same name, so that a later one, or its user, may have put another
adapter in its place. A name tells nobody whose adapter it is.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.checkpoint.copying import copy_adapter
from lora_lab.checkpoint.loading import load_adapter
from lora_lab.checkpoint.locate import holds_adapter
from lora_lab.checkpoint.saving import save_adapter
from lora_lab.errors import RunError
from lora_lab.methods.api import detach
from lora_lab.methods.attached import attached

if TYPE_CHECKING:
    from lora_lab.training.run import Run


def is_attached(run: Run) -> bool:
    """Return whether the model has the run's own adapter."""
    adapter = run.adapter
    return adapter is not None and attached(run.model).get(adapter.name) is adapter


def save(run: Run, folder: Path) -> Path:
    """Write a run's adapter into a folder; return the folder.

    Raises:
        RunError: the run has none, neither on the model nor on disk.
    """
    with run.paused() as model:
        if run.adapter is not None and is_attached(run):
            return save_adapter(model, folder, run.adapter.name)
    return copy_adapter(saved(run), folder)


@contextlib.contextmanager
def on_model(run: Run) -> Iterator[str]:
    """Yield the name under which the model has a run's adapter in the block.

    Where it has it no more, it is read from the run's folder for that long. Nothing may train on
    the model meanwhile.

    Raises:
        RunError: it is on disk neither.
        AdapterError: another adapter is merged into the weights.
    """
    if run.adapter is not None and is_attached(run):
        yield run.adapter.name
        return
    name = re.sub(r"[^A-Za-z0-9_-]", "-", run.id)
    load_adapter(run.model, saved(run), name, activate=False)
    try:
        yield name
    finally:
        detach(run.model, name)


def saved(run: Run) -> Path:
    """Return the folder of the adapter that a run left.

    Raises:
        RunError: it left none.
    """
    folder = run.folder / "adapter"
    if not holds_adapter(folder):
        gone = "" if run.adapter is None else ", and the model has it no more"
        raise RunError(f"{run.title} is {run.state} and has left no adapter{gone}; train it first")
    return folder
