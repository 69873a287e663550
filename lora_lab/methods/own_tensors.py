"""A model's own modules, parameters and buffers, without what adapters have added below them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lora_lab._util.torch_private import parameters_of, saved_buffers_of
from lora_lab.anatomy.children import ADAPTER_CHILD, LEARNED_CHILD, SAVED_CHILD
from lora_lab.anatomy.wrappers import children_within, modules_within
from lora_lab.methods.lora.layers import AdaptedLayer


def own_tensors(module: nn.Module, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, parameter or buffer) of what a state dict of the bare module holds."""
    for name, tensor in (*parameters_of(module).items(), *saved_buffers_of(module).items()):
        if tensor is not None:
            yield path + name, tensor
    for name, child in children_within(module):
        if name not in added_children(module):
            yield from own_tensors(child, f"{path}{name}.")


def own_modules(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) as `modules_within` does, of the model alone.

    One more adapter costs the same, however many there are.
    """
    return modules_within(model, every_name=every_name, left_out=added_children)


def added_children(module: nn.Module) -> tuple[str, ...]:
    """Return which of a module's children adapters have added below it."""
    always = SAVED_CHILD, LEARNED_CHILD
    return (*always, ADAPTER_CHILD) if isinstance(module, AdaptedLayer) else always
