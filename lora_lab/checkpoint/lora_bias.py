"""The biases of B in a file of PEFT's: lora_bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from lora_lab.checkpoint.adapter_file import AdapterFile, rows_of
from lora_lab.checkpoint.files import quoted
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.lora_bias import BiasedSites

KEY = ".lora_B.bias"


def take_biases(file: AdapterFile) -> tuple[AdapterFile, dict[str, Tensor]]:
    """Return a file without the biases of B, and these by the paths of their modules.

    Raises:
        AdapterError: settings and tensors do not go together.
    """
    keys = [key for key in file.weights if key.endswith(KEY)]
    biases = {key.removesuffix(KEY): file.weights[key].torch() for key in keys}
    said = file.settings.get("lora_bias") or False
    if type(said) is not bool:
        raise AdapterError(f"lora_bias is {quoted(said)}, neither true nor false")
    others = [*file.embeddings, *file.kernels, *file.experts]
    if said and others:
        raise AdapterError(f"lora_bias is for linear layers, and {quoted(others[0])} is none")
    for path in sorted(biases.keys() ^ (file.modules.keys() if said else set())):
        has = "a" if path in biases else "no"
        raise AdapterError(
            f"{quoted(path)} has {has} bias in B, and lora_bias={said}; fetch the adapter again"
        )
    for path, bias in biases.items():
        out = len(file.modules[path].B)
        if bias.shape != (out,) or not bias.is_floating_point() or not bias.isfinite().all():
            raise AdapterError(
                f"tensor {quoted(path + KEY)} is not {out} finite numbers; fetch the adapter again"
            )
    rest = {key: tensor for key, tensor in file.weights.items() if key not in keys}
    return replace(file, weights=rest), biases


def fill_biases(adapter: LoraAdapter, biases: Mapping[str, Tensor]) -> None:
    """Copy a file's biases into an adapter that was built for it.

    Raises:
        AdapterError: one is where the adapter has no place for it.
    """
    left = {path: bias.clone() for path, bias in biases.items()}
    with torch.no_grad():
        for site in adapter.sites.values():
            if (path := site.site.module) in biases:
                rows = rows_of(site.site.rows)
                cast(nn.Parameter, site.bias).copy_(biases[path][rows])
                left[path][rows] = 0
    for path, bias in left.items():
        if bias.any():
            raise AdapterError(
                f"{quoted(path)} has a bias in B on rows of no matrix here; merge this adapter "
                "where it was made"
            )


def bias_tensors(grouped: Mapping[str, Sequence[LoraSite]]) -> dict[str, Tensor]:
    """Return {PEFT's name: β of a whole layer, at the scale of its first site}."""
    return {
        f"{path}{KEY}": (BiasedSites(sites).bias() / sites[0].scale).detach().to("cpu", copy=True)
        for path, sites in grouped.items()
        if sites[0].bias is not None
    }
