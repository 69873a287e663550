"""What a file holds besides factors: modules trained whole, and base weights that came along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lora_lab.anatomy.children import SAVED_CHILD
from lora_lab.checkpoint.files import shown
from lora_lab.checkpoint.modules import AdapterFile
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import original_weight
from lora_lab.methods.modules_to_save import own_tensors


def match_whole(
    file: AdapterFile, model: nn.Module, by_path: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """Return {path of a module trained whole: {name in the model's state dict: tensor}}.

    PEFT takes every module whose path ends in one of the letters of `modules_to_save`. It also
    writes base weights that nobody trained (embeddings): these have to be the model's own.

    Raises:
        AdapterError: a tensor that is neither, or is for another base.
    """
    found: dict[str, dict[str, Tensor]] = {}
    names = tuple(file.settings.get("modules_to_save") or ())
    # An empty tuple ends nothing.
    taken = [path for path in by_path if path.endswith(names) and SAVED_CHILD not in path]
    taken = [p for p in taken if not any(p.startswith(f"{other}.") for other in taken)]
    base = dict(own_tensors(model))
    left = dict(file.weights)
    for path in taken:
        own = dict(own_tensors(by_path[path], f"{path}."))
        tensors = {key: left.pop(key) for key in list(left) if key.startswith(f"{path}.")}
        if odd := own.keys() ^ tensors.keys():
            has = "lacks" if min(odd) in own else "has a"
            raise AdapterError(
                f"the file names {path} in modules_to_save and {has} {shown(min(odd))}; "
                "fetch the adapter again"
            )
        for key, tensor in tensors.items():
            _check_whole(key, tensor, own[key])
        unchanged = all(_equal(model, tensors[key], own[key]) for key in own)
        if own and not (unchanged and path not in names):
            found[path] = tensors
    for key, tensor in left.items():
        head, _, last = key.rpartition(".")
        mine = base.get(key, base.get(f"{head.removesuffix('.base_layer')}.{last}"))
        if mine is None:
            raise AdapterError(
                f"tensor {shown(key)} is neither a LoRA factor nor in modules_to_save; only these "
                "are read"
            )
        _check_whole(key, tensor, mine)
        if not _equal(model, tensor, mine):
            raise AdapterError(
                f"the adapter is for another base: {shown(key)} in the file is not this model's"
            )
    return found


def _check_whole(key: str, tensor: Tensor, own: Tensor) -> None:
    if tensor.shape != own.shape:
        raise AdapterError(
            f"the adapter is for another base: {shown(key)} is {tuple(own.shape)} here, "
            f"{tuple(tensor.shape)} in the file"
        )
    if tensor.is_floating_point() != own.is_floating_point() or not tensor.isfinite().all():
        raise AdapterError(f"tensor {shown(key)} is no finite weight; fetch the adapter again")


def _equal(model: nn.Module, tensor: Tensor, own: Tensor) -> bool:
    base = original_weight(model, cast(nn.Parameter, own))
    return torch.equal(tensor.to(base), base)
