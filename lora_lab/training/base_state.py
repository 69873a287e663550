"""All that a base model's answers hang on, as one hash: is it still the model that was scored?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import is_offloaded
from lora_lab._util.cpu_layout import undo_cpu_layout
from lora_lab._util.torch_private import hooks_of, pre_hooks_of
from lora_lab._util.wrapper_tensors import held_tensors, scales_of
from lora_lab.methods.attached import base_parameters, original_weight

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NUMBERS = 1 << 20  # that are summed at a time


def base_state(model: nn.Module) -> str | None:
    """Return a hash of every weight and buffer, the modules with their hooks, and the config.

    Adapters' factors do not count, but their layers do, and how many threads compute.

    Returns:
        None where the weights are not at hand: offloaded, or on the meta device.
    """
    if any(map(is_offloaded, model.modules())):
        return None
    found = hashlib.sha256(f"{torch.get_num_threads()} {_config(model)}".encode())
    for name, module in model.named_modules():
        found.update(f"{name} {type(module)} {_altered(module)};".encode())
    undo_cpu_layout(model.modules())
    with torch.no_grad():
        for tensor in _tensors(model):
            if tensor.is_meta:
                return None
            found.update(f"{tuple(tensor.shape)} {tensor.dtype} {tensor.device};".encode())
            for sums in _sums(tensor):
                found.update(sums.cpu().numpy().tobytes())
    return found.hexdigest()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for parameter in base_parameters(model):
        yield from held_tensors(original_weight(model, parameter).detach())
        yield from (scale for scale in scales_of(parameter) if isinstance(scale, Tensor))
    yield from model.buffers()


def _sums(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the sums over a matrix's rows and over its columns, its bits read as whole numbers.

    Any one number that changes shows in both, and so do rows and columns that are exchanged.
    """
    width = tensor.shape[-1] if tensor.dim() and tensor.numel() else 1
    bits = tensor.contiguous().view(-1).view(torch.uint8)
    if tensor.element_size() not in _BITS:
        yield bits.sum(dim=0, dtype=torch.int64)
        return
    bits = bits.view(_BITS[tensor.element_size()]).view(-1, width)
    columns = torch.zeros(width, dtype=torch.int64, device=bits.device)
    rows = []
    # torch makes 64 bits of each number before it sums: of an embedding at once, that is as much
    # memory as the whole of a small model.
    for part in bits.split(max(1, _NUMBERS // width)):
        columns += part.sum(dim=0, dtype=torch.int64)
        rows.append(part.sum(dim=1, dtype=torch.int64))
    yield columns
    yield torch.cat(rows)


def _altered(module: nn.Module) -> Any:
    """Return what somebody may have hung on a module, or put in its way."""
    hooks = [len(pre_hooks_of(module)), len(hooks_of(module))]
    own = module.__dict__.get("forward")
    return hooks, None if own is None else id(getattr(own, "__func__", own))


def _config(model: nn.Module) -> str:
    config: Any = getattr(model, "config", None)
    return repr(config.to_dict() if hasattr(config, "to_dict") else config)
