"""Adapters on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors.

Every module is named by its full, escaped path, so that no other reader can match too much. Slices
of a fused matrix are one module there: A stacked, B block-diagonal, r and α scaled together.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab.adapters import LoraAdapter, LoraSite, attach, attached
from lora_lab.adapters.base import active
from lora_lab.anatomy import Anatomy, Site, anatomy
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError
from lora_lab.plan import full, lookup

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(rf"{re.escape(_PREFIX)}(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_SLICES = "lora_lab_slices"  # safetensors metadata: which sites a fused module was stacked from


@dataclass(frozen=True)
class _Module:
    """One module's update as PEFT holds it: ΔW = alpha/r·BA over the whole module."""

    A: Tensor  # (r, in)
    B: Tensor  # (out, r)
    alpha: float

    @property
    def r(self) -> int:
        return self.A.shape[0]


# Writing ------------------------------------------------------------------------------------------


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
    modules = {path: _stack(sites, adapter.config) for path, sites in grouped.items()}
    tensors = {}
    for path, module in modules.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = module.A
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = module.B
    slices = {
        path: [[s.site.name, s.r] for s in sites]
        for path, sites in grouped.items()
        if sites[0].site.rows is not None
    }
    settings = _peft_config(
        model, adapter, modules, any(s[0].site.transposed for s in grouped.values())
    )

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (WEIGHTS_FILE + ".partial")
    save_file(tensors, partial, metadata={"format": "pt", _SLICES: json.dumps(slices)})
    os.replace(partial, folder / WEIGHTS_FILE)
    partial = folder / (CONFIG_FILE + ".partial")
    partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / CONFIG_FILE)
    return folder


def _stack(sites: list[LoraSite], config: LoraConfig) -> _Module:
    """Return the sites of one module as one update over the whole of it."""
    cpu = [(s.A.detach().cpu().contiguous(), s.B.detach().cpu().contiguous()) for s in sites]
    if sites[0].site.rows is None:
        return _Module(*cpu[0], sites[0].alpha)
    scale = sites[0].scale
    r = sum(site.r for site in sites)
    rows = sites[0].site.rows
    B = torch.zeros(rows.groups * rows.group_size, r, dtype=cpu[0][1].dtype)
    at = 0
    for site, (_, own) in zip(sites, cpu, strict=True):
        # One module has one scale in PEFT; a site with another carries the ratio in its B.
        columns = B[:, at : at + site.r]
        columns[_rows_of(site.site)] = own if site.scale == scale else own * (site.scale / scale)
        at += site.r
    # The α that gives the same s at the stacked rank.
    return _Module(torch.cat([A for A, _ in cpu]), B, scale * (r**0.5 if config.use_rslora else r))


def _peft_config(
    model: nn.Module, adapter: LoraAdapter, modules: Mapping[str, _Module], transposed: bool
) -> dict[str, Any]:
    config = adapter.config
    r = Counter(m.r for m in modules.values()).most_common(1)[0][0]
    alpha = Counter(m.alpha for m in modules.values()).most_common(1)[0][0]
    base = getattr(model, "config", None)
    return {
        "peft_type": "LORA",
        "task_type": _task_type(model),
        "base_model_name_or_path": getattr(base, "_name_or_path", None) or None,
        "revision": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": _tidy(alpha),
        "lora_dropout": config.lora_dropout,
        "target_modules": list(modules),
        "bias": "none",
        "fan_in_fan_out": transposed,
        "rank_pattern": {full(path): m.r for path, m in modules.items() if m.r != r},
        "alpha_pattern": {
            full(path): _tidy(m.alpha) for path, m in modules.items() if m.alpha != alpha
        },
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


def _tidy(alpha: float) -> float | int:
    return int(alpha) if float(alpha).is_integer() else alpha


# Reading ------------------------------------------------------------------------------------------


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> LoraAdapter:
    """Attach a LoRA adapter from a folder in PEFT's format, LoRA Lab's own or another's.

    Names and shapes are compared with the model before anything is changed. Nothing is unpickled.

    Raises:
        AdapterError: a file is missing, damaged or foreign, or the adapter is for another base.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    tensors, slices = _read_tensors(folder)
    modules = _pair(tensors, settings)
    map_ = anatomy(model)
    factors = _split(modules, slices, map_, settings)

    adapter = cast(LoraAdapter, attach(model, _own_config(factors, settings), name))
    with torch.no_grad():
        for path, (A, B, _) in factors.items():
            adapter.sites[path].A.copy_(A)
            adapter.sites[path].B.copy_(B)
    return adapter


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{folder} has no {CONFIG_FILE}; name the folder that holds the adapter")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError(f"{path} is not readable JSON ({error}); fetch it again") from None
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise AdapterError(
            f"{path} describes {kind!r}, not a LoRA adapter; only LORA can be loaded"
        )
    for field, plain in {"use_dora": False, "bias": "none", "modules_to_save": None}.items():
        if (settings.get(field) or plain) != plain:
            raise AdapterError(
                f"{path}: {field}={settings[field]!r} is not supported yet; "
                f"load an adapter trained with {field}={plain!r}"
            )
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(field) or {}
        if not isinstance(pattern, dict):
            raise AdapterError(f"{path}: {field} is not a mapping; fetch the adapter again")
        settings[field] = pattern
    settings.setdefault("r", 8)
    settings.setdefault("lora_alpha", 8)
    return settings


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, list[tuple[str, int]]]]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        if (folder / "adapter_model.bin").exists():
            raise AdapterError(
                f"{folder} holds a pickle (adapter_model.bin), which can run code; "
                "save it as safetensors where you trust it"
            )
        raise AdapterError(
            f"{folder} has no {WEIGHTS_FILE}; name the folder that holds the adapter"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        slices = json.loads(metadata.get(_SLICES, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged ({error}); fetch it again") from None
    return tensors, slices


def _pair(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, _Module]:
    """Return {module path: update}, with every key accounted for."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(
                f"tensor {key!r} is not a LoRA factor; only lora_A and lora_B are read"
            )
        if tensor.ndim != 2 or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise AdapterError(f"tensor {key!r} is not a finite matrix; fetch the adapter again")
        halves.setdefault(match["module"], {})[match["factor"]] = tensor
    if not halves:
        raise AdapterError(f"{WEIGHTS_FILE} is empty; fetch the adapter again")
    modules = {}
    for path, pair in halves.items():
        if pair.keys() != {"A", "B"}:
            raise AdapterError(f"{path} has lora_{min(pair)} without its partner; fetch it again")
        A, B = pair["A"], pair["B"]
        r = lookup(settings["rank_pattern"], [path], settings["r"])
        if not A.shape[0] == B.shape[1] == r:
            raise AdapterError(
                f"{path}: A is {tuple(A.shape)} and B {tuple(B.shape)}, but the config says r={r}"
            )
        modules[path] = _Module(
            A, B, lookup(settings["alpha_pattern"], [path], settings["lora_alpha"])
        )
    return modules


def _split(
    modules: Mapping[str, _Module],
    slices: Mapping[str, list[tuple[str, int]]],
    map_: Anatomy,
    settings: Mapping[str, Any],
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return {site name: (A, B, scale)}, shapes checked against the model."""
    by_module: dict[str, list[Site]] = {}
    for site in map_.sites:
        by_module.setdefault(site.module, []).append(site)
    factors = {}
    for path, module in modules.items():
        if path not in by_module:
            raise AdapterError(
                f"the adapter is for another base: this model has no adaptable module {path!r} "
                f"(it has {next(iter(by_module), 'none')!r}, …)"
            )
        sites = by_module[path]
        rows = sites[0].rows
        out = rows.groups * rows.group_size if rows else sites[0].out_features
        if (module.B.shape[0], module.A.shape[1]) != (out, sites[0].in_features):
            raise AdapterError(
                f"the adapter is for another base: {path} is {out} × {sites[0].in_features} here, "
                f"{module.B.shape[0]} × {module.A.shape[1]} in the file"
            )
        scale = module.alpha / (module.r**0.5 if settings.get("use_rslora") else module.r)
        own = dict(slices.get(path, ()))
        if own and sum(own.values()) == module.r and own.keys() <= {s.name for s in sites}:
            at = 0
            for name, r in own.items():
                site = map_.by_name[name]
                B = module.B[_rows_of(site), at : at + r]
                factors[name] = (module.A[at : at + r], B, scale)
                at += r
        else:
            # One A for the whole fused matrix: each slice takes it with its own rows of B.
            for site in sites:
                factors[site.name] = (module.A, module.B[_rows_of(site)], scale)
    return factors


def _own_config(
    factors: Mapping[str, tuple[Tensor, Tensor, float]], settings: Mapping[str, Any]
) -> LoraConfig:
    """Return the config that gives every site its rank and scale."""
    use_rslora = bool(settings.get("use_rslora"))
    ranks = {name: A.shape[0] for name, (A, _, _) in factors.items()}
    alphas = {
        name: scale * (ranks[name] ** 0.5 if use_rslora else ranks[name])
        for name, (_, _, scale) in factors.items()
    }
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return LoraConfig(
        r=r,
        lora_alpha=_tidy(alpha),
        lora_dropout=float(settings.get("lora_dropout") or 0.0),
        target_modules=tuple(factors),
        rank_pattern={full(n): v for n, v in ranks.items() if v != r},
        alpha_pattern={full(n): _tidy(v) for n, v in alphas.items() if v != alpha},
        use_rslora=use_rslora,
    )


def _rows_of(site: Site) -> Tensor | slice:
    """Return what indexes the site's rows in a fused (out, …) matrix."""
    if site.rows is None:
        return slice(None)
    rows = site.rows
    index = torch.arange(rows.groups * rows.group_size).view(rows.groups, rows.group_size)
    return index[:, rows.offset : rows.offset + rows.width].flatten()


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
