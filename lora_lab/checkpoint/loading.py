"""An adapter read from PEFT's format onto a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lora_lab.adapters import LoraAdapter, attach
from lora_lab.anatomy import Anatomy, Site, anatomy
from lora_lab.checkpoint.files import CONFIG_FILE
from lora_lab.checkpoint.modules import AdapterFile, ModuleUpdate, split
from lora_lab.checkpoint.peft import changed_base, read_peft, read_settings
from lora_lab.checkpoint.saving import tidy
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError
from lora_lab.plan import full


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> LoraAdapter:
    """Attach a LoRA adapter from a folder in PEFT's format, LoRA Lab's own or another's.

    Names and shapes are compared with the model before anything is changed. Nothing is unpickled.

    Raises:
        AdapterError: a file is missing, damaged or foreign, or the adapter is for another base.
    """
    folder = Path(folder)
    _refuse_what_cannot_be_attached(folder, read_settings(folder))
    file = read_peft(folder)
    if file.left_out:
        key = next(iter(file.left_out.values()))[0]
        raise AdapterError(f"tensor {key!r} is not a LoRA factor; only lora_A and lora_B are read")
    factors = match_sites(file, anatomy(model))

    adapter = cast(LoraAdapter, attach(model, _own_config(factors, file.settings), name))
    with torch.no_grad():
        for path, update in factors.items():
            adapter.sites[path].A.copy_(update.A)
            adapter.sites[path].B.copy_(update.B)
    return adapter


def match_sites(file: AdapterFile, map_: Anatomy) -> dict[str, ModuleUpdate]:
    """Return {site name: its update}, names and shapes compared with the base.

    Raises:
        AdapterError: the adapter is for another base; the line names the first difference.
    """
    by_module: dict[str, list[Site]] = {}
    for site in map_.sites:
        by_module.setdefault(site.module, []).append(site)
    found: dict[str, ModuleUpdate] = {}
    for path, module in file.modules.items():
        if path not in by_module:
            raise AdapterError(
                f"the adapter is for another base: this model has no adaptable module {path!r} "
                f"(it has {next(iter(by_module), 'none')!r}, …)"
            )
        check_shape(path, module, by_module[path][0])
        found |= split(module, by_module[path], file.slices.get(path, ()))
    return found


def check_shape(path: str, module: ModuleUpdate, site: Site) -> None:
    """Raise unless a module's update has the shape of the base's module.

    Args:
        path: the module's path.
        module: its update.
        site: the module's site in the base, or one of them.
    """
    out = site.rows.groups * site.rows.group_size if site.rows else site.out_features
    if module.shape != (out, site.in_features):
        raise AdapterError(
            f"the adapter is for another base: {path} is {out} × {site.in_features} here, "
            f"{module.shape[0]} × {module.shape[1]} in the file"
        )


def _refuse_what_cannot_be_attached(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / CONFIG_FILE
    plain_values = {"peft_type": "LORA", "use_dora": False, "bias": "none", "modules_to_save": None}
    for field, plain in plain_values.items():
        if (settings.get(field) or plain) != plain:
            raise AdapterError(
                f"{path}: {field}={settings[field]!r} is not supported yet; "
                f"load an adapter trained with {field}={plain!r}"
            )
    if init := changed_base(settings):
        raise AdapterError(
            f"{path}: {init} took a part out of the base's weights; convert the adapter with "
            "PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )


def _own_config(factors: Mapping[str, ModuleUpdate], settings: Mapping[str, Any]) -> LoraConfig:
    """Return the config that gives every site its rank and scale."""
    use_rslora = bool(settings.get("use_rslora"))
    ranks = {name: update.r for name, update in factors.items()}
    alphas = {
        name: update.scale * (update.r**0.5 if use_rslora else update.r)
        for name, update in factors.items()
    }
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return LoraConfig(
        r=r,
        lora_alpha=tidy(alpha),
        lora_dropout=settings.get("lora_dropout") or 0.0,
        target_modules=tuple(factors),
        rank_pattern={full(n): v for n, v in ranks.items() if v != r},
        alpha_pattern={full(n): tidy(v) for n, v in alphas.items() if v != alpha},
        use_rslora=use_rslora,
    )
