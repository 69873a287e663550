"""PEFT's format for loaders that ignore rank_pattern and alpha_pattern (vLLM, LoRAX).

These give every module the one scale α/r of the config, and LoRAX stacks the layers of each kind of
module: so here every module of a kind is there, all have one rank, and α = r. What has a smaller
rank is padded with zeros, a layer that was not adapted is all zeros, and the scale is in B: exact.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_lab._util.files import new_dir
from lora_lab._util.transformers_private import origin
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Site
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.checkpoint.experts import taken_for_experts
from lora_lab.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE
from lora_lab.checkpoint.peft import PREFIX
from lora_lab.checkpoint.peft_folder import task_type
from lora_lab.checkpoint.saving import named_adapter
from lora_lab.checkpoint.stacking import module_update, padded, refuse_others
from lora_lab.methods.attached import one_step
from lora_lab.methods.finite import check_finite
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.turns import turn
from lora_lab.redaction import redacted_values
from lora_lab.spectra.update import LowRankUpdate

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def export_uniform(model: nn.Module, folder: str | Path, name: str | None = None) -> Path:
    """Write an adapter with one rank and one scale, as vLLM, LoRAX and PEFT load it.

    The outputs are the adapter's own; the file is larger where ranks differ or layers were left
    out. Slices of a fused matrix become one module.

    Args:
        model: a model with a LoRA adapter.
        folder: new or empty.
        name: which adapter; the one in force by default.

    Returns:
        The folder.

    Raises:
        AdapterError: what such loaders cannot hold (DoRA, embeddings, convolutions, modules
            trained whole), or a folder that holds something.
    """
    with turn(model), one_step(model, name):
        return _export(unwrapped(model), Path(folder), name)


def _export(model: nn.Module, folder: Path, name: str | None) -> Path:
    from safetensors.torch import save_file

    adapter = named_adapter(model, name)
    refuse_others(adapter, "loaders without patterns")
    tensors = {}
    updates = _of_every_layer(adapter, anatomy(model).by_name.values())
    r = max(update.r for update in updates.values())
    for path, update in updates.items():
        full = padded(update, r)
        tensors[f"{PREFIX}{path}.lora_A.weight"] = full.A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = full.B
    check_finite(adapter.name, tensors)
    if taken := taken_for_experts(model, updates):
        warnings.warn(
            f"PEFT with transformers 5 takes {taken[0]!r} in this file for routed experts; for "
            "PEFT use save_adapter",
            stacklevel=3,
        )
    transposed = any(site.site.transposed for site in adapter.sites.values())
    settings = _settings(model, adapter, list(updates), r, transposed)
    with new_dir(folder) as place:
        save_file(tensors, place / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(redacted_values(settings), indent=2) + "\n"
        (place / CONFIG_FILE).write_text(text, encoding="utf-8")
    return folder


def _of_every_layer(adapter: LoraAdapter, every: Iterable[Site]) -> dict[str, LowRankUpdate]:
    """Return {module: its update} of all modules of every adapted kind, zeros where not adapted.

    In the model's order; a kind is the modules whose paths differ in their numbers only.
    """
    adapted: dict[str, list[LoraSite]] = {}
    for own in adapter.sites.values():
        adapted.setdefault(own.site.module, []).append(own)
    kinds = {_kind(path) for path in adapted}
    updates: dict[str, LowRankUpdate] = {}
    for site in every:
        path = site.module
        if path in updates or _kind(path) not in kinds:
            continue
        if path in adapted:
            updates[path] = module_update(adapted[path])
        else:
            out = site.rows.groups * site.rows.group_size if site.rows else site.out_features
            updates[path] = LowRankUpdate(
                torch.zeros(1, site.in_features, dtype=torch.float32),
                torch.zeros(out, 1, dtype=torch.float32),
            )
    return updates


def _kind(path: str) -> str:
    return _NUMBER.sub("*", path)


def _settings(
    model: nn.Module, adapter: LoraAdapter, modules: list[str], r: int, transposed: bool
) -> Mapping[str, Any]:
    base = getattr(model, "config", None)
    return {
        "peft_type": "LORA",
        "task_type": task_type(model),
        "base_model_name_or_path": origin(base) or None,
        "revision": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": adapter.config.lora_dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": True,
    }
