"""PEFT's format: what adapter_config.json and the names of the tensors mean.

ΔW = s·BA of every module, with s = α/r (α/√r with `use_rslora`), r and α by `rank_pattern` and
`alpha_pattern`. AdaLoRA's ΔW = α/(init_r + 1e-5)·B·diag(E)·A is one of these too, with E in B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_lab.checkpoint.files import (
    CONFIG_FILE,
    PICKLE_FILE,
    WEIGHTS_FILE,
    read_json,
    read_tensors,
)
from lora_lab.checkpoint.modules import (
    SLICES_KEY,
    AdapterFile,
    ModuleUpdate,
    check_factor,
    decode_slices,
)
from lora_lab.errors import AdapterError
from lora_lab.plan import lookup

PREFIX = "base_model.model."

# Old files have the adapter's name in the key; AdaLoRA's factors are no modules, so no ".weight".
_KEY = re.compile(
    rf"(?:{re.escape(PREFIX)})?(?P<module>.+?)\.lora_(?P<part>A|B|E)(?:\.(?!bias$)[^.]+)??"
    r"(?:\.weight)?"
)
_LEFT_OUT = {
    "embeddings": re.compile(r".*\.lora_embedding_[AB](\..+)?"),
    "magnitudes": re.compile(r".*\.lora_magnitude_vector(\..+)?"),
    "biases": re.compile(r"(?!.*\.lora_A).*\.bias"),
    "weights": re.compile(r"(?!.*\.lora_).*"),
}
# Fields that make ΔW something else than s·BA.
_FOREIGN = ("use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config")
# Inits that take a low-rank part out of W₀: the file's BA is not ΔW against the original W₀.
_CHANGED_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
_DEEPEST = 64  # names in a module's path


def read_peft(path: Path, *, allow_pickle: bool = False) -> AdapterFile:
    """Read an adapter in PEFT's format, whoever wrote it; nothing but data is read.

    Args:
        path: its folder, or the weights beside its adapter_config.json.
        allow_pickle: whether adapter_model.bin may be read, with `weights_only=True`.

    Raises:
        AdapterError: a file is missing, damaged or foreign, or is no kind of LoRA.
    """
    folder = path.parent if path.is_file() else path
    settings = read_settings(folder)
    weights = path if path.is_file() else _weights_file(folder, allow_pickle)
    tensors, metadata = read_tensors(weights, allow_pickle=allow_pickle)
    halves, left_out = _sort(tensors, settings)
    modules = {module: _update(module, parts, settings) for module, parts in halves.items()}
    if not modules and not left_out:
        raise AdapterError(f"{weights.name} is empty; fetch the adapter again")
    slices = decode_slices(metadata.get(SLICES_KEY, ""), modules)
    return AdapterFile(settings, modules, slices, left_out)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json, its numbers checked and its defaults filled in.

    Raises:
        AdapterError: the file is missing, damaged, or describes something else.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(_nothing_here(folder))
    settings = read_json(path)
    kind = settings.get("peft_type")
    if kind not in ("LORA", "ADALORA"):
        raise AdapterError(f"{path} describes {kind!r}, not a LoRA adapter; only LORA can be read")
    for field in _FOREIGN:
        if settings.get(field):
            raise AdapterError(f"{path}: with {field} ΔW is not s·BA; only LoRA itself can be read")
    for field in ("rank_pattern", "alpha_pattern"):
        settings[field] = settings.get(field) or {}
        if not isinstance(settings[field], dict):
            raise AdapterError(f"{path}: {field} is not a mapping; fetch the adapter again")
    experts = settings["target_parameters"] = settings.get("target_parameters") or []
    if not isinstance(experts, list) or not all(isinstance(name, str) for name in experts):
        raise AdapterError(f"{path}: target_parameters is no list of names; fetch it again")
    rank = "init_r" if kind == "ADALORA" else "r"
    settings.setdefault(rank, 12 if kind == "ADALORA" else 8)
    settings.setdefault("lora_alpha", 8)
    # AdaLoRA's rank_pattern lists which triplets are left, not ranks.
    ranks = {rank: settings[rank], **(settings["rank_pattern"] if kind == "LORA" else {})}
    for name, value in ranks.items():
        if type(value) is not int or value < 1:
            raise AdapterError(f"{path}: rank {name!r} is {value!r}, not a whole number above 0")
    for name, value in {"lora_alpha": settings["lora_alpha"], **settings["alpha_pattern"]}.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise AdapterError(f"{path}: alpha {name!r} is {value!r}, not a number")
    return settings


def changed_base(settings: Mapping[str, Any]) -> str:
    """Return the init that took a part out of W₀ ("pissa", "olora" …), or ""."""
    init = str(settings.get("init_lora_weights")).lower()
    return init if init.startswith(_CHANGED_BASE) else ""


def _weights_file(folder: Path, allow_pickle: bool) -> Path:
    path, pickled = folder / WEIGHTS_FILE, folder / PICKLE_FILE
    if path.is_file():
        return path
    if not pickled.is_file():
        raise AdapterError(
            f"{folder} has no {WEIGHTS_FILE}; name the folder that holds the adapter"
        )
    if not allow_pickle:
        raise AdapterError(
            f"{folder} holds a pickle ({PICKLE_FILE}), which can run code; "
            "save it as safetensors where you trust it"
        )
    return pickled


def _nothing_here(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}; name the folder that holds the adapter"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if inside:
        return f"{folder} has no {CONFIG_FILE}; it holds {', '.join(inside[:4])}: name one of them"
    return f"{folder} has no {CONFIG_FILE}; name the folder that holds the adapter"


def _sort(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[str]]]:
    """Return {module: {"A", "B", "E"}}, and what is left out; every key is accounted for."""
    halves: dict[str, dict[str, Tensor]] = {}
    left_out: dict[str, list[str]] = {}
    # Experts' weights in one tensor: there the factors of all of them are stacked.
    stacked = [name.rpartition(".")[0] for name in settings["target_parameters"]]
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            kind = next((kind for kind, name in _LEFT_OUT.items() if name.fullmatch(key)), None)
            if kind is None:
                raise AdapterError(
                    f"tensor {key!r} belongs to a variant of LoRA; only lora_A and lora_B are read"
                )
            left_out.setdefault(kind, []).append(key)
            continue
        module, part = match["module"].removesuffix(".base_layer"), match["part"]
        if module.count(".") >= _DEEPEST:
            raise AdapterError(f"tensor {key[:60]!r}… is no name of a module; fetch it again")
        if any(f".{module}".endswith(f".{name}") for name in stacked):
            left_out.setdefault("experts", []).append(key)
        elif not tensor.numel() and settings["peft_type"] == "ADALORA":
            left_out.setdefault("pruned", []).append(key)
        elif tensor.ndim > 2:
            left_out.setdefault("convolutions", []).append(key)
        else:
            parts = halves.setdefault(module, {})
            if part in parts:
                raise AdapterError(f"{module} has two lora_{part}; name a file with one adapter")
            parts[part] = check_factor(key, tensor)
    return halves, left_out


def _update(module: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> ModuleUpdate:
    adaptive = settings["peft_type"] == "ADALORA"
    if missing := {"A", "B", *("E" if adaptive else ())} - parts.keys():
        raise AdapterError(
            f"{module} has lora_{min(parts)} without its partner lora_{min(missing)}; "
            "fetch the adapter again"
        )
    A, B = parts["A"], parts["B"]
    r = A.shape[0] if adaptive else lookup(settings["rank_pattern"], [module], settings["r"])
    if not A.shape[0] == B.shape[1] == r:
        raise AdapterError(
            f"{module}: A is {tuple(A.shape)} and B {tuple(B.shape)}, but the config says r={r}"
        )
    if adaptive:
        if parts["E"].shape != (r, 1):
            raise AdapterError(f"{module}: lora_E is not ({r}, 1); fetch the adapter again")
        # PEFT keeps the scale of the rank that training began with.
        return ModuleUpdate(
            A, B * parts["E"].T, settings["lora_alpha"] / (settings["init_r"] + 1e-5)
        )
    alpha = lookup(settings["alpha_pattern"], [module], settings["lora_alpha"])
    return ModuleUpdate(A, B, alpha / (r**0.5 if settings.get("use_rslora") else r))
