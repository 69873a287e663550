"""What a file holds besides factors: modules trained whole, and base weights that came along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lora_lab.anatomy.children import SAVED_CHILD
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.files import StoredTensor, quoted
from lora_lab.checkpoint.tied_weights import tied_to
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import original_weight
from lora_lab.methods.own_tensors import own_tensors
from lora_lab.methods.running_statistics import RunningStatistics


def match_full_modules(
    file: AdapterFile, model: nn.Module, by_path: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """Return {path of a module trained whole: {name in the model's state dict: tensor}}.

    PEFT takes every module whose path ends in one of the letters of `modules_to_save`. It also
    writes base weights that nobody trained (embeddings): these have to be the model's own.

    Raises:
        AdapterError: a tensor that is neither, or is for another base.
    """
    trained: dict[str, dict[str, Tensor]] = {}
    names = tuple(file.settings.get("modules_to_save") or ())
    taken = taken_whole(file, by_path)
    base = dict(own_tensors(model))
    rest = {key: tensor.torch() for key, tensor in file.weights.items()}
    if file.settings.get("ensure_weight_tying"):
        # PEFT names the embedding alone, and writes what it has tied to it too.
        ends = dict.fromkeys(end for path in taken for end in tied_to(path, by_path))
        found = [end for end in ends if f"{end}.weight" in rest and end not in taken]
        taken, names = [*taken, *found], (*names, *found)
    for path in taken:
        own = dict(own_tensors(by_path[path], f"{path}."))
        tensors = {key: rest.pop(key) for key in list(rest) if key.startswith(f"{path}.")}
        if odd := own.keys() ^ tensors.keys():
            has = "lacks" if min(odd) in own else "has a"
            raise AdapterError(
                f"the file names {path} in modules_to_save and {has} {quoted(min(odd))}; "
                "fetch the adapter again"
            )
        for key, tensor in tensors.items():
            check_tensor(key, tensor, own[key])
        unchanged = all(_equal(model, tensors[key], own[key]) for key in own)
        if own and not (unchanged and path not in names):
            trained[path] = tensors
    statistics = match_statistics(file.weights, model, trained)
    for key, tensor in rest.items():
        if key in statistics:
            continue
        head, _, last = key.rpartition(".")
        mine = base.get(key, base.get(f"{head.removesuffix('.base_layer')}.{last}"))
        if mine is None:
            raise AdapterError(
                f"tensor {quoted(key)} is neither a LoRA factor nor in modules_to_save; only these "
                "are read"
            )
        check_tensor(key, tensor, mine)
        if not _equal(model, tensor, mine):
            raise AdapterError(
                f"the adapter is for another base: {quoted(key)} in the file is not this model's"
            )
    return trained


def taken_whole(file: AdapterFile, by_path: Mapping[str, nn.Module]) -> list[str]:
    """Return the paths of what PEFT takes for named in `modules_to_save`, the outermost."""
    names = tuple(file.settings.get("modules_to_save") or ())
    # An empty tuple ends nothing.
    taken = [path for path in by_path if path.endswith(names) and SAVED_CHILD not in path]
    return [p for p in taken if not any(p.startswith(f"{other}.") for other in taken)]


def match_statistics(
    stored: Mapping[str, StoredTensor], model: nn.Module, trained: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return those of a file's tensors that are running statistics of the base's own layers.

    Args:
        stored: by their names in the model's state dict.
        model: the base.
        trained: paths of modules that are trained whole, with their buffers.

    Raises:
        AdapterError: one that does not fit, or is no number.
    """
    tracked, own = RunningStatistics(model), dict(own_tensors(model))
    inside = tuple(f"{path}." for path in trained)
    found = {
        key: tensor.torch()
        for key, tensor in stored.items()
        if key in tracked and not key.startswith(inside)
    }
    for key, tensor in found.items():
        check_tensor(key, tensor, own[key])
    return found


def check_tensor(key: str, tensor: Tensor, own: Tensor) -> None:
    """Raise `AdapterError` unless a file's tensor can stand in the place of the model's own."""
    if tensor.shape != own.shape:
        raise AdapterError(
            f"the adapter is for another base: {quoted(key)} is {tuple(own.shape)} here, "
            f"{tuple(tensor.shape)} in the file"
        )
    if tensor.is_floating_point() != own.is_floating_point() or not tensor.isfinite().all():
        raise AdapterError(f"tensor {quoted(key)} is no finite weight; fetch the adapter again")


def _equal(model: nn.Module, tensor: Tensor, own: Tensor) -> bool:
    base = original_weight(model, cast(nn.Parameter, own))
    return torch.equal(tensor.to(base), base)
