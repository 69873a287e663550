"""An adapter read from its files onto a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lora_lab.checkpoint.files import CONFIG_FILE, OWN_CONFIG_FILE, shown
from lora_lab.checkpoint.native import fill, read_own
from lora_lab.checkpoint.peft import changed_base, read_peft, read_settings
from lora_lab.checkpoint.saving import tidy
from lora_lab.checkpoint.to_model import Matched, match
from lora_lab.errors import AdapterError
from lora_lab.methods.api import build, put_on
from lora_lab.methods.attached import activate as switch_to
from lora_lab.methods.base import Adapter
from lora_lab.methods.combination import Combination
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import full


def load_adapter(
    model: nn.Module, folder: str | Path, name: str = "default", *, activate: bool = True
) -> Adapter:
    """Attach an adapter from a folder: LoRA in PEFT's format, or any that `save_adapter` wrote.

    Names and shapes are compared with the model before anything is changed. Nothing is unpickled.
    The adapter acts only when all of it is there, so another thread may go on generating.

    Args:
        model: any model with the modules that the adapter names.
        folder: where the adapter's two files are, or a combination's folders.
        name: that the adapter gets.
        activate: False leaves in force what is.

    Raises:
        AdapterError: a file is missing, damaged or foreign, or the adapter is for another base.
    """
    content = _read(model, Path(folder))
    adapter = build(model, content.config, name)
    content.fill(adapter)
    put_on(model, adapter, activate=False)
    if activate:
        switch_to(model, name)
    return adapter


@dataclass(frozen=True)
class _Content:
    """What a folder holds: the config, and what fills in an adapter that was built from it."""

    config: Any
    fill: Callable[[Adapter], None]


def _read(model: nn.Module, folder: Path) -> _Content:
    if not (folder / OWN_CONFIG_FILE).is_file():
        return _read_lora(model, folder)
    file = read_own(folder)
    if not file.parts:
        return _Content(file.config, lambda adapter: fill(adapter, file.tensors, folder))
    contents = [_read(model, part) for part in file.parts]

    def fill_parts(combination: Adapter) -> None:
        for content, part in zip(contents, cast(Combination, combination).adapters, strict=True):
            content.fill(part)

    return _Content(tuple(content.config for content in contents), fill_parts)


def _read_lora(model: nn.Module, folder: Path) -> _Content:
    _refuse_what_cannot_be_attached(folder, read_settings(folder))
    file = read_peft(folder, known={path for path, _ in model.named_modules()})
    for key in file.left_out.get("experts", ()):
        raise AdapterError(
            f"tensor {shown(key)} is for experts that share one tensor, which are not adapted "
            "here; leave target_parameters out of the training"
        )
    found = match(file, model)
    if not found.updates:
        raise AdapterError(f"{folder} holds no LoRA factors that could be attached")

    def fill_factors(adapter: Adapter) -> None:
        with torch.no_grad():
            for path, update in found.updates.items():
                adapter.sites[path].A.copy_(update.A)
                adapter.sites[path].B.copy_(update.B)
            for path, magnitude in found.magnitudes.items():
                cast(nn.Parameter, adapter.sites[path].magnitude).copy_(magnitude)
            whole = {key: t for tensors in found.saved.values() for key, t in tensors.items()}
            for key, tensor in cast(LoraAdapter, adapter).saved.state():
                tensor.copy_(whole[key])

    return _Content(_own_config(found, file.settings), fill_factors)


def _refuse_what_cannot_be_attached(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / CONFIG_FILE
    if (settings.get("bias") or "none") != "none":
        raise AdapterError(
            f"{path}: bias={shown(settings['bias'])} is not supported; "
            "load an adapter trained with bias='none'"
        )
    if init := changed_base(settings):
        raise AdapterError(
            f"{path}: {init} took a part out of the base's weights; convert the adapter with "
            "PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )


def _own_config(found: Matched, settings: Mapping[str, Any]) -> LoraConfig:
    """Return the config that gives every site its rank and scale."""
    factors = found.updates
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
        lora_dropout=_dropout(settings.get("lora_dropout")),
        target_modules=tuple(factors),
        rank_pattern={full(n): v for n, v in ranks.items() if v != r},
        alpha_pattern={full(n): tidy(v) for n, v in alphas.items() if v != alpha},
        use_rslora=use_rslora,
        use_dora=bool(found.magnitudes),
        modules_to_save=tuple(found.saved) or None,
    )


def _dropout(value: object) -> float:
    if value is None:
        return 0.0
    if type(value) not in (int, float) or not 0 <= cast(float, value) < 1:
        raise AdapterError(f"lora_dropout is {shown(value)}; it must lie in [0, 1)")
    return cast(float, value)
