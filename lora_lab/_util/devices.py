"""On which devices a model computes: one, several (`device_map`), or others than its weights'."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import execution_device
from lora_lab._util.torch_private import buffers_of, parameters_of


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module computes on; of a model, where its inputs belong.

    Weights that accelerate keeps on the CPU or the disk are on meta until they are needed: its hook
    says where they come to. A module without parameters computes on the CPU.
    """
    hooked = execution_device(module)
    found = _devices(module, parameters_of) if hooked is None else iter((hooked,))
    return next(found, torch.device("cpu"))


def on_device_of(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch's tensors where the model's inputs belong."""
    device = device_of(model)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def devices_of(model: nn.Module) -> tuple[torch.device, ...]:
    """Return all devices that a model's layers compute on, that of its inputs first."""
    held = (*_devices(model, parameters_of), *_devices(model, buffers_of))
    return tuple(dict.fromkeys((device_of(model), *held)))


def _devices(module: nn.Module, tensors_of: Callable[[nn.Module], Any]) -> Iterator[torch.device]:
    for part in module.modules():
        for tensor in tensors_of(part).values():
            if tensor is not None:
                yield (execution_device(part) if tensor.is_meta else None) or tensor.device
