"""Adapters that PEFT has no form for, and combinations: LoRA Lab's own files.

adapter/
    lora_lab_adapter.json          {"format": 1, "method": "BitFit", "config": {…}}
    lora_lab_adapter.safetensors   the tensors of `Adapter.state`, and their SHA-256

adapter/                           of a combination: each part is an adapter of its own
    lora_lab_adapter.json          {"format": 1, "method": "LoRA+PE", "parts": ["1-lora", …]}
    1-lora/                        in PEFT's form
    2-pre-embed/                   in the form above
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lora_lab._util.files import write_file_atomic, write_text_atomic
from lora_lab.checkpoint.checksum import SEAL_KEY, digest
from lora_lab.checkpoint.files import (
    CONFIG_FILE,
    OWN_CONFIG_FILE,
    OWN_WEIGHTS_FILE,
    WEIGHTS_FILE,
    read_json,
    read_tensors,
    shown,
)
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.base import Adapter
from lora_lab.methods.registry import methods

_FORMAT = 1
_PART = re.compile(r"[0-9]+-[a-z0-9-]+")


def save_own(adapter: Adapter, folder: Path) -> None:
    """Write an adapter of a method that PEFT has no form for; what lay there before is replaced."""
    from safetensors.torch import save_file

    config = {"class": type(adapter.config).__name__, **adapter.config.to_dict()}
    tensors = {
        name: t.detach().to("cpu", copy=True).contiguous() for name, t in adapter.state().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    before = parts_in(folder)
    with write_file_atomic(folder / OWN_WEIGHTS_FILE) as file:
        save_file(tensors, file, metadata={"format": "pt", SEAL_KEY: digest(tensors, config)})
    _write_settings(folder, {"method": adapter.method, "config": config})
    for other in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / other).unlink(missing_ok=True)
    remove_parts(before)


def save_parts(method: str, names: list[str], folder: Path) -> None:
    """Write the list of a combination's parts, whose folders are there already."""
    before = parts_in(folder)
    _write_settings(folder, {"method": method, "parts": names})
    for other in (CONFIG_FILE, WEIGHTS_FILE, OWN_WEIGHTS_FILE):
        (folder / other).unlink(missing_ok=True)
    remove_parts(part for part in before if part.name not in names)


def parts_in(folder: Path) -> list[Path]:
    """Return the folders of the combination's parts that a folder holds; none of anything else."""
    try:
        names = read_json(folder / OWN_CONFIG_FILE).get("parts")
    except AdapterError:
        return []
    return [folder / name for name in names] if _are_parts(names) else []


def remove_parts(parts: Iterable[Path]) -> None:
    """Remove parts of an adapter that was there before, and nothing that is not an adapter's."""
    for part in parts:
        for file in (CONFIG_FILE, WEIGHTS_FILE, OWN_CONFIG_FILE, OWN_WEIGHTS_FILE):
            (part / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds something else, or is not there
            part.rmdir()


def part_name(number: int, adapter: Adapter) -> str:
    """Return the folder of a combination's part, such as "2-pre-embed"."""
    words = re.sub(r"^Pre(?=[A-Z])", "Pre-", adapter.method)  # as the command line has them
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return f"{number}-{slug}"


@dataclass(frozen=True)
class OwnFile:
    """An adapter's own files, read.

    Attributes:
        config: the method's; None of a combination.
        tensors: {name: tensor}, as `Adapter.state` names them.
        parts: the folders of a combination's parts.
    """

    config: Any
    tensors: Mapping[str, Tensor]
    parts: tuple[Path, ...] = ()


def read_own(folder: Path) -> OwnFile:
    """Read a folder that has a lora_lab_adapter.json.

    Raises:
        AdapterError: a file is missing, damaged, foreign, or changed after it was saved.
    """
    path = folder / OWN_CONFIG_FILE
    settings = read_json(path)
    if settings.get("format") != _FORMAT:
        raise AdapterError(
            f"{path} has format {shown(settings.get('format'))}, and this version reads {_FORMAT}; "
            "update LoRA Lab"
        )
    if "parts" in settings:
        names = settings["parts"]
        if not _are_parts(names):
            raise AdapterError(f"{path}: parts is {shown(names)}; save the adapter again")
        return OwnFile(None, {}, tuple(folder / name for name in names))
    config = settings.get("config")
    classes = {m.config.__name__: m.config for m in methods().values() if not m.peft_form}
    kind = classes.get(str(config.get("class"))) if isinstance(config, dict) else None
    if kind is None or not isinstance(config, dict):
        known = ", ".join(classes)
        raise AdapterError(f"{path}: config is {shown(config)}; its class must be one of {known}")
    try:
        built = kind.from_dict({key: v for key, v in config.items() if key != "class"})
    except (ConfigError, TypeError) as error:
        raise AdapterError(f"{path}: {error}") from None
    tensors, metadata = read_tensors(folder / OWN_WEIGHTS_FILE, allow_pickle=False)
    if metadata.get(SEAL_KEY) != digest(tensors, config):
        raise AdapterError(
            f"{folder}: the adapter's tensors or its {OWN_CONFIG_FILE} were changed after LoRA Lab "
            "had saved them; fetch or save the adapter again"
        )
    return OwnFile(built, tensors)


def fill(adapter: Adapter, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy a file's tensors into an adapter, if all of them fit.

    Raises:
        AdapterError: the file is for another base.
    """
    live = adapter.state()
    for name in sorted(live.keys() ^ tensors.keys()):
        what = "misses" if name in live else "has, and this model does not,"
        raise AdapterError(f"{where} {what} {shown(name)}; load it onto the base it was made for")
    for name, tensor in live.items():
        if tensor.shape != tensors[name].shape or not tensors[name].is_floating_point():
            raise AdapterError(
                f"{where}: {name} is {tuple(tensors[name].shape)} and this model's is "
                f"{tuple(tensor.shape)}; load it onto the base it was made for"
            )
        if not torch.isfinite(tensors[name]).all():
            raise AdapterError(f"{where}: {name} holds NaN or infinite values; train it again")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])


def _are_parts(names: object) -> TypeGuard[list[str]]:
    """Whether this is a list of parts' folders, right below the combination's own."""
    return (
        isinstance(names, list)
        and bool(names)
        and all(isinstance(name, str) and _PART.fullmatch(name) for name in names)
    )


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps({"format": _FORMAT, **settings}, indent=2)
    write_text_atomic(folder / OWN_CONFIG_FILE, text + "\n")
