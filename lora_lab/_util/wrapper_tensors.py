"""Tensors that stand for others: torchao's and quanto's packed weights, DTensor's shards.

And those that stand beside one: bitsandbytes' scales.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor stands for others."""
    return hasattr(type(tensor), "__tensor_flatten__")


def held_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors behind a wrapper, by torch's own protocol; of a plain one, itself.

    A wrapper's storage is none: `Tensor._make_wrapper_subclass` says a size and allocates nothing,
    and what it can be asked for is up to it (torchao's weights have no `view`). What it holds is
    told by `__tensor_flatten__` (torch.utils._python_dispatch.is_traceable_wrapper_subclass).
    """
    wrapper: Any = tensor
    if not is_wrapper(tensor):
        return [tensor]
    names, _ = wrapper.__tensor_flatten__()
    parts = (getattr(wrapper, name) for name in names)
    # DTensor names its mesh too, which is no tensor.
    return [held for part in parts if isinstance(part, Tensor) for held in held_tensors(part)]


def scales_of(parameter: Tensor) -> list[Tensor]:
    """Return what bitsandbytes keeps of a packed parameter in its attributes, nested scales too."""
    found = [getattr(parameter, "SCB", None)]
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        found += getattr(state, "__dict__", {}).values()
        state = getattr(state, "state2", None)
    return [tensor for tensor in found if isinstance(tensor, Tensor)]
