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

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.json_files import misfit
from lora_lab.checkpoint.checksum import CHECKSUM_KEY, checksum
from lora_lab.checkpoint.files import (
    NATIVE_CONFIG_FILE,
    NATIVE_WEIGHTS_FILE,
    StoredTensor,
    check_settings,
    quoted,
    read_json,
    read_tensors,
)
from lora_lab.checkpoint.schema import NativeSettings
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.registry import methods

if TYPE_CHECKING:
    from torch import Tensor

    from lora_lab.methods.base import Adapter

STATISTICS = "running statistics: "  # before the names of what is no parameter
_FORMAT = 1


def save_native(adapter: Adapter, folder: Path, statistics: Mapping[str, Tensor]) -> None:
    """Write an adapter of a method that PEFT has no form for.

    Args:
        adapter: what is written.
        folder: has no adapter's files; made if missing.
        statistics: the base's running statistics as they are with the adapter.
    """
    from safetensors.torch import save_file

    config = {"class": type(adapter.config).__name__, **adapter.config.to_dict()}
    state = {**adapter.state(), **{STATISTICS + name: t for name, t in statistics.items()}}
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in state.items()}
    folder.mkdir(exist_ok=True)
    sha256 = checksum({name: StoredTensor.of(t) for name, t in tensors.items()}, config)
    metadata = {"format": "pt", CHECKSUM_KEY: sha256}
    save_file(tensors, folder / NATIVE_WEIGHTS_FILE, metadata=metadata)
    _write_settings(folder, {"method": adapter.method, "config": config})


def save_parts(method: str, names: list[str], folder: Path) -> None:
    """Write the list of a combination's parts, whose folders are there already."""
    _write_settings(folder, {"method": method, "parts": names})


def parts_in(folder: Path) -> list[Path]:
    """Return the folders of the combination's parts that a folder holds; none of anything else."""
    try:
        settings = read_json(folder / NATIVE_CONFIG_FILE)
    except AdapterError:
        return []
    known = not misfit(settings, NativeSettings)
    return [folder / name for name in settings.get("parts", []) if known]


def part_name(number: int, adapter: Adapter) -> str:
    """Return the folder of a combination's part, such as "2-pre-embed"."""
    words = re.sub(r"^Pre(?=[A-Z])", "Pre-", adapter.method)  # as the command line has them
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return f"{number}-{slug}"


@dataclass(frozen=True)
class NativeFile:
    """An adapter in LoRA Lab's own format, read.

    Attributes:
        method: its method's name, such as "BitFit", or "LoRA+PE" of a combination.
        config: the method's; None of a combination.
        tensors: {name: tensor}, as `Adapter.state` names them.
        parts: the folders of a combination's parts.
    """

    method: str
    config: Any
    tensors: Mapping[str, StoredTensor]
    parts: tuple[Path, ...] = ()


def read_native(folder: Path) -> NativeFile:
    """Read a folder that has a lora_lab_adapter.json.

    Raises:
        AdapterError: a file is missing, damaged, foreign, or changed after it was saved.
    """
    path = folder / NATIVE_CONFIG_FILE
    settings = read_json(path)
    if settings.get("format") != _FORMAT:
        raise AdapterError(
            f"{path} has format {quoted(settings.get('format'))}, and this version reads "
            f"{_FORMAT}; update LoRA Lab"
        )
    check_settings(settings, path, NativeSettings)
    method = str(settings.get("method"))
    if "parts" in settings:
        return NativeFile(method, None, {}, tuple(folder / name for name in settings["parts"]))
    config = settings.get("config")
    classes = {m.config.__name__: m.config for m in methods().values() if not m.peft_form}
    kind = None if config is None else classes.get(str(config.get("class")))
    if kind is None or config is None:
        known = ", ".join(classes)
        raise AdapterError(f"{path}: config is {quoted(config)}; its class must be one of {known}")
    try:
        built = kind.from_dict({key: v for key, v in config.items() if key != "class"})
    except (ConfigError, TypeError) as error:
        raise AdapterError(f"{path}: {error}") from None
    tensors, metadata = read_tensors(folder / NATIVE_WEIGHTS_FILE, allow_pickle=False)
    if metadata.get(CHECKSUM_KEY) != checksum(tensors, config):
        raise AdapterError(
            f"{folder}: the adapter's tensors or its {NATIVE_CONFIG_FILE} were changed after LoRA "
            "Lab had saved them; fetch or save the adapter again"
        )
    return NativeFile(method, built, tensors)


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps({"format": _FORMAT, **settings}, indent=2)
    (folder / NATIVE_CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
