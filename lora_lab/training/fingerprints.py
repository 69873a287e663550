"""Is it the same base and the same data? What a run writes down, and a resume compares."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import is_offloaded, offloaded
from lora_lab._util.cpu_layout import undo_cpu_layout
from lora_lab._util.wrapper_tensors import held_tensors
from lora_lab.anatomy.heads import head_modules
from lora_lab.anatomy.wrappers import module_at
from lora_lab.methods.attached import base_parameters, original_weight
from lora_lab.methods.own_tensors import own_tensors
from lora_lab.tasks.decoding import GREEDY
from lora_lab.tasks.framing import LINE

if TYPE_CHECKING:
    from lora_lab.tasks.base import Task

_SAMPLES = 64  # values of each matrix, evenly spaced: another model or another dtype shows in them


def base_fingerprint(model: nn.Module, but: Collection[str] = ()) -> str:
    """Return a hash of the base's shapes, dtypes and some of the values of every matrix.

    Adapters that are on the model, or merged into it, do not count.

    Args:
        model: with its adapters, or without.
        but: modules whose parameters are left out.
    """
    found = hashlib.sha256()
    undo_cpu_layout(model.modules())
    apart = {id(p) for path in but for p in module_at(model, path).parameters()}
    with torch.no_grad():
        for parameter, value in _base_values(model):
            if id(parameter) in apart:
                continue
            found.update(f"{tuple(parameter.shape)} {parameter.dtype};".encode())
            for tensor in held_tensors(value.detach()):
                weight = tensor.reshape(-1)
                if weight.numel():
                    values = weight[:: max(1, weight.numel() // _SAMPLES)].cpu().contiguous()
                    found.update(values.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _base_values(model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the base's parameters with W₀, a tied one once, also what accelerate keeps away."""
    if not any(map(is_offloaded, model.modules())):
        for parameter in base_parameters(model):
            yield parameter, original_weight(model, parameter)
        return
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in own_tensors(model):
        if isinstance(tensor, nn.Parameter) and name not in tied:
            path, _, leaf = name.rpartition(".")
            kept = offloaded(module_at(model, path), leaf) if tensor.is_meta else None
            yield tensor, original_weight(model, tensor) if kept is None else kept


def body_fingerprint(model: nn.Module, base: str | None = None) -> str:
    """Return `base_fingerprint` without a classifier's head, which may start at random.

    Args:
        model: as there.
        base: what that returned of the model, if it is known: without a head it is the same.
    """
    heads = head_modules(model)
    return base if base is not None and not heads else base_fingerprint(model, heads)


def task_fingerprints(task: Task | Any) -> dict[str, str]:
    """Return what tells a task from others, whatever its name.

    Returns:
        {"data": see `data_fingerprint`, "held_out": the same of the validation examples, "task":
        its kind, the classes or the like of its head, and how answers are decoded}. Examples are
        what was read of a table's columns: other columns are other examples.
    """
    kind: tuple[Any, ...] = (type(task).__name__, task.loss_unit, task.head)
    if (decoding := getattr(task, "decoding", GREEDY)) != GREEDY:  # other scores of like answers
        kind = (*kind, decoding)
    return {
        "data": data_fingerprint(task),
        "held_out": _hash_of(task.validation),
        "task": hashlib.sha256(repr(kind).encode()).hexdigest(),
    }


def data_fingerprint(task: Task | Any) -> str:
    """Return a hash of all training examples in their order, and of what frames their prompts."""
    template = getattr(task, "template", LINE)
    return _hash_of(task.train, "" if template == LINE else template)


def _hash_of(examples: Iterable[Any], template: str = "") -> str:
    found = hashlib.sha256(template.encode())
    for example in examples:
        text = repr(example)
        if text.startswith("LabeledText("):
            text = f"LabelledText({text.removeprefix('LabeledText(')}"  # so in all older runs
        found.update(text.encode())
    return found.hexdigest()
