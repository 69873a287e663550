"""A layer's own forward and weight, whoever has patched the one or reads the other.

Libraries put a `forward` of their own on an instance: accelerate's hooks bring a layer's weight
from the CPU or the disk and take it away again. A class swap is not seen then, so `AdaptedLayer`
keeps such a forward aside, and calls it for the base's output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import execution_device, is_offloaded, offloaded
from lora_lab._util.torch_private import parameters_of
from lora_lab.errors import AdapterError

PATCHED = "_lora_patched"  # the key in an adapted layer's __dict__ of the instance's own forward


class _Running(threading.local):
    """The layers whose own forward this thread is in the midst of."""

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []


_running = _Running()


def runs_itself(layer: nn.Module) -> bool:
    """Whether this thread is within the layer's own forward already."""
    return any(own is layer for own in _running.layers)


@contextmanager
def _within(layer: nn.Module) -> Iterator[None]:
    _running.layers.append(layer)
    try:
        yield
    finally:
        _running.layers.pop()


def base_forward(layer: Any, x: Tensor) -> Tensor:
    """Return what a layer makes of x without adapters."""
    patched = layer.__dict__.get(PATCHED)
    if patched is None and not layer.is_read:
        return cast(Tensor, layer.base_class.forward(layer, x))
    with _within(layer):  # the patch may come back to the adapted forward, and the base reads W₀
        if patched is not None:
            return cast(Tensor, patched(x))
        return cast(Tensor, layer.base_class.forward(layer, x))


def base_output(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what any layer, adapted or not, makes of x without adapters."""
    own: Any = layer
    return base_forward(own, x) if hasattr(own, "base_class") else cast(Tensor, own.forward(x))


def instance_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the `forward` that stands on an instance in its class's place, or None."""
    return cast(Any, module.__dict__.get(PATCHED, module.__dict__.get("forward")))


def hold_weight(layer: nn.Module) -> Tensor | None:
    """Return the tensor that a layer holds as its weight; on meta where accelerate took it away.

    None: it holds none, or what is called so is no tensor (GPTQModel's layers, for their sizes).
    """
    weight: Any = parameters_of(layer).get("weight")
    if weight is None:
        with _within(layer):
            weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def base_tensor(layer: nn.Module, name: str = "weight") -> Tensor:
    """Return a layer's W₀ or bias, also where accelerate keeps it on the CPU or the disk."""
    tensor = cast(Tensor, hold_weight(layer) if name == "weight" else getattr(layer, name))
    if tensor.is_meta and (kept := offloaded(layer, name)) is not None:
        return kept.to(execution_device(layer) or kept.device)
    return tensor


def home(layer: nn.Module) -> torch.device:
    """Return the device that a layer runs on."""
    held = hold_weight(layer)
    if held is None:  # GPTQ's, AWQ's and HQQ's are called otherwise
        held = next(iter((*layer.parameters(), *layer.buffers())))
    return (execution_device(layer) if held.is_meta else None) or held.device


def refuse_offloaded(layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse to write into weights that accelerate keeps away.

    Raises:
        AdapterError: the line names the layer.
    """
    for path, layer in layers:
        if is_offloaded(layer):
            raise AdapterError(
                f"{path} is offloaded, so that nothing can be merged into it; load the model "
                "without offloading, on one device or several"
            )
