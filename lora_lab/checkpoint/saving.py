"""An adapter written in PEFT's format, for PEFT and for what reads PEFT's files.

Every module is named by its full, escaped path, so that no other reader can match too much. Slices
of a fused matrix are one module there: A stacked, B block-diagonal, r and α scaled together.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_lab.adapters import LoraAdapter, LoraSite, attached
from lora_lab.adapters.base import active
from lora_lab.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE
from lora_lab.checkpoint.modules import SLICES_KEY, ModuleUpdate, Slice, encode_slices, rows_of
from lora_lab.checkpoint.peft import PREFIX
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError
from lora_lab.plan import full


def save_adapter(model: nn.Module, folder: str | Path, name: str | None = None) -> Path:
    """Write an adapter so that PEFT, and what reads PEFT's files, can load it.

    Args:
        model: a model with a LoRA adapter.
        folder: made if missing; each file is written under a temporary name and renamed.
        name: which adapter; the one in force by default.

    Returns:
        The folder.
    """
    from safetensors.torch import save_file

    adapter = _named(model, name)
    folder = Path(folder)
    grouped: dict[str, list[LoraSite]] = {}
    for site in adapter.sites.values():
        grouped.setdefault(site.site.module, []).append(site)
    modules = {path: _stack(sites) for path, sites in grouped.items()}
    tensors = {}
    for path, module in modules.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = module.A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = module.B
    slices = {
        path: [Slice(s.site.name, s.r, s.site.rows) for s in sites]
        for path, sites in grouped.items()
        if sites[0].site.rows is not None
    }
    alphas = {path: _alpha(grouped[path], adapter.config, m) for path, m in modules.items()}
    transposed = any(sites[0].site.transposed for sites in grouped.values())
    settings = _peft_config(model, adapter, modules, alphas, transposed)

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(tensors, partial, metadata={"format": "pt", SLICES_KEY: encode_slices(slices)})
    os.replace(partial, folder / WEIGHTS_FILE)
    partial = folder / (CONFIG_FILE + ".partial")
    partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG_FILE)
    return folder


def _stack(sites: list[LoraSite]) -> ModuleUpdate:
    """Return the sites of one module as one update over the whole of it."""
    cpu = [(s.A.detach().cpu().contiguous(), s.B.detach().cpu().contiguous()) for s in sites]
    scale = sites[0].scale
    rows = sites[0].site.rows
    if rows is None:
        return ModuleUpdate(*cpu[0], scale)
    r = sum(site.r for site in sites)
    B = torch.zeros(rows.groups * rows.group_size, r, dtype=cpu[0][1].dtype)
    at = 0
    for site, (_, own) in zip(sites, cpu, strict=True):
        # One module has one scale in PEFT; a site with another carries the ratio in its B.
        columns = B[:, at : at + site.r]
        columns[rows_of(site.site.rows)] = (
            own if site.scale == scale else own * (site.scale / scale)
        )
        at += site.r
    return ModuleUpdate(torch.cat([A for A, _ in cpu]), B, scale)


def _alpha(sites: list[LoraSite], config: LoraConfig, module: ModuleUpdate) -> float:
    """Return the α that gives the module's scale at its rank."""
    if sites[0].site.rows is None:
        return sites[0].alpha
    return module.scale * (module.r**0.5 if config.use_rslora else module.r)


def _peft_config(
    model: nn.Module,
    adapter: LoraAdapter,
    modules: Mapping[str, ModuleUpdate],
    alphas: Mapping[str, float],
    transposed: bool,
) -> dict[str, Any]:
    config = adapter.config
    r = Counter(m.r for m in modules.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    base = getattr(model, "config", None)
    return {
        "peft_type": "LORA",
        "task_type": _task_type(model),
        "base_model_name_or_path": getattr(base, "_name_or_path", None) or None,
        "revision": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": tidy(alpha),
        "lora_dropout": config.lora_dropout,
        "target_modules": list(modules),
        "bias": "none",
        "fan_in_fan_out": transposed,
        "rank_pattern": {full(path): m.r for path, m in modules.items() if m.r != r},
        "alpha_pattern": {full(path): tidy(a) for path, a in alphas.items() if a != alpha},
        "use_rslora": config.use_rslora,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": True,
    }


def _task_type(model: nn.Module) -> str | None:
    # Not SEQ_CLS: there PEFT expects the classifier's own weights in the file.
    name = type(model).__name__
    heads = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
    heads |= {"ForConditionalGeneration": "SEQ_2_SEQ_LM"}
    return next((task for ending, task in heads.items() if name.endswith(ending)), None)


def tidy(alpha: float) -> float | int:
    """Return α as people write it: 16, not 16.0."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _named(model: nn.Module, name: str | None) -> LoraAdapter:
    adapters = attached(model)
    name = name or active(model) or next(iter(adapters), None)
    if name is None or name not in adapters:
        raise AdapterError(
            f"no adapter is called {name!r}; attached are {', '.join(adapters) or 'none'}"
            if adapters
            else "the model has no adapter to save; call attach(model, config) first"
        )
    adapter = adapters[name]
    if not isinstance(adapter, LoraAdapter):
        raise AdapterError(f"adapter {name!r} is {adapter.method}; only LoRA is saved here")
    return adapter
