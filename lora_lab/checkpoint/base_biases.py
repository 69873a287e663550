"""The base's biases in a file of PEFT's: those that `bias="all"` or "lora_only" has trained.

PEFT writes them under the names that they have in its own model: a module that it has wrapped holds
its bias in a "base_layer", and one trained whole has the base's beside its own.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.format import some
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.files import quoted
from lora_lab.checkpoint.full_modules import check_tensor, taken_whole
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.config import BIASES
from lora_lab.methods.own_tensors import own_tensors

_WRAPPED = re.compile(r"\.(?:base_layer|token_adapter)(?=\.)")
_SAVED = re.compile(r"\.(?:modules_to_save|original_module)\.")

Biases = dict[int, tuple[str, Tensor]]  # {id of the model's parameter: its name, the file's values}


def take_base_biases(
    file: AdapterFile, model: nn.Module, by_path: Mapping[str, nn.Module]
) -> tuple[AdapterFile, Biases, Any]:
    """Return a file without the biases of the base, these, and which the file says it has.

    Raises:
        AdapterError: settings and tensors do not go together, or are for another base.
    """
    said = file.settings.get("bias") or "none"
    if said not in BIASES:
        raise AdapterError(f"bias is {quoted(said)}, none of {', '.join(BIASES)}")
    if said == "none":
        return file, {}, said
    whole = taken_whole(file, by_path)
    own = dict(own_tensors(model))
    rest, found = dict(file.weights), Biases()
    for key in [key for key in rest if f".{key}".endswith(".bias")]:
        name = key if key in own else _WRAPPED.sub("", key)
        if any(name.startswith(f"{path}.") for path in whole):
            if _SAVED.search(key):  # PEFT's other names of what stands under the module's too
                del rest[key]
            continue
        if said == "lora_only" and name == key and name.removesuffix(".bias") not in file.modules:
            continue  # it came along untrained, as for any other file
        bias = rest.pop(key).torch()
        if not isinstance(parameter := own.get(name), nn.Parameter):
            raise AdapterError(
                f"the adapter is for another base: {quoted(name)} is a bias in the file and none "
                "in this model"
            )
        check_tensor(name, bias, parameter)
        other, first = found.setdefault(id(parameter), (name, bias))
        if not torch.equal(first, bias):
            raise AdapterError(
                f"{name} and {other} are one tensor here (tied weights), and the file has two "
                "values for it; merge this adapter where it was made"
            )
    return replace(file, weights=rest), found, said


def fill_base_biases(adapter: LoraAdapter, biases: Biases) -> None:
    """Copy a file's biases into an adapter that was built for it; say which it lacks.

    Raises:
        AdapterError: one is where the adapter has no place for it.
    """
    left = dict(biases)
    live = adapter.biases.state()
    lacking = []
    with torch.no_grad():
        for name, parameter in adapter.biases.own.items():
            _, values = left.pop(id(parameter), (name, None))
            if values is None:
                lacking.append(name)
            else:
                live[name].copy_(values)
    for name, _ in left.values():
        raise AdapterError(
            f"the file has {quoted(name)}, which belongs to no layer that it adapts; fetch the "
            "adapter again"
        )
    if lacking:
        warnings.warn(
            f"bias={adapter.lora.bias!r}, and the file lacks {some(lacking)}; the base's own stay "
            "there",
            stacklevel=4,
        )


def base_bias_tensors(
    adapter: LoraAdapter, wrapped: Mapping[str, int], targets: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (PEFT's name, tuned values) of an adapter's own values of the base's biases.

    Args:
        adapter: on its model.
        wrapped: {path of a module that PEFT wraps: how many times}.
        targets: those of them that the adapter itself adapts.
    """
    tuned = {
        id(parameter): value
        for parameter, value in zip(
            adapter.biases.own.values(), adapter.biases.state().values(), strict=True
        )
    }
    for name, tensor in own_tensors(adapter.model):
        path = name.rpartition(".")[0]
        if id(tensor) not in tuned or (adapter.lora.bias == "lora_only" and path not in targets):
            continue
        around = ".token_adapter" if adapter.tokens.covers(path) else ""
        layers = wrapped.get(path, 1 if around else 0)
        key = f"{path}{around}{'.base_layer' * layers}.bias".removeprefix(".")
        yield key, tuned[id(tensor)].detach().to("cpu", copy=True)
