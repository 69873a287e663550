"""The bytes of an adapter's files. What they hold is foreign: every flaw ends in one clear line."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_lab._util.quiet import first_line
from lora_lab.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# What PEFT has no form for; see `checkpoint.own`.
OWN_CONFIG_FILE = "lora_lab_adapter.json"
OWN_WEIGHTS_FILE = "lora_lab_adapter.safetensors"
PICKLE_FILE = "adapter_model.bin"
_LARGEST_JSON = 16 * 2**20  # bytes
_DEEPEST_JSON = 20


def shown(value: object, most: int = 80) -> str:
    """Return what a file holds as it may stand in a message: quoted, on one line, not too long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        AdapterError: it is not there, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise AdapterError(f"{path} is too large for a config; fetch it again")
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterError(
            f"{path} is not readable JSON ({first_line(error)}); fetch it again"
        ) from None
    if not isinstance(value, dict) or _depth(value) > _DEEPEST_JSON:
        raise AdapterError(f"{path} is not a JSON object of settings; fetch it again")
    return value


def _depth(value: object) -> int:
    """Return how deep lists and objects lie in each other; without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [x for v in inner if isinstance(v, list) for x in v]
    return depth


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal keys one reader takes the first and another the last.
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{shown(double)} stands twice")
    return found


def read_tensors(path: Path, *, allow_pickle: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors, and the metadata that safetensors keep beside them.

    Args:
        path: a safetensors file, or a pickle of a state dict.
        allow_pickle: whether to read a pickle, with `weights_only=True`: it can build tensors and
            plain containers, and call nothing else.

    Raises:
        AdapterError: the file is missing or damaged, or a pickle that was not asked for.
    """
    if not path.is_file():
        raise AdapterError(f"there is no file {path}; name the adapter's file or folder")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not allow_pickle:
        raise AdapterError(
            f"{path} is a pickle, which can run code; save it as safetensors where you trust it"
        )
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except Exception as error:  # a damaged header raises whatever its fields run into
        raise AdapterError(f"{path} is damaged ({first_line(error)}); fetch it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise AdapterError(
            f"{path} is not a plain state dict, and nothing else is unpickled; "
            "save its tensors as safetensors where you trust it"
        ) from None
    except Exception as error:  # a broken pickle raises whatever its opcodes run into
        raise AdapterError(f"{path} is damaged ({first_line(error)}); fetch it again") from None
    # loralib's own example wraps the state dict once.
    if isinstance(value, Mapping) and isinstance(value.get("model_state_dict"), Mapping):
        value = value["model_state_dict"]
    if not isinstance(value, Mapping):
        raise AdapterError(f"{path} holds no state dict; name the file with the adapter's tensors")
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
