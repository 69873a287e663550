"""Parameters that get smaller while an optimizer is at work on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Shrunk(NamedTuple):
    """What takes a parameter's place."""

    parameter: nn.Parameter
    dim: int  # along which it was gathered
    left: Tensor  # the entries that are left, int64, on its device


@torch.no_grad()
def replace_parameters(
    optimizer: torch.optim.Optimizer, replaced: Mapping[nn.Parameter, Shrunk]
) -> None:
    """Put gathered parameters in the place of others, their moments gathered likewise.

    Parameters of which nothing is left go, and so do the old ones' gradients. Of the state, tensors
    of the parameter's shape are gathered, numbers stay as they are; a parameter with state of
    another form (factored, packed) starts without any.

    Args:
        optimizer: between two steps.
        replaced: {old: new}; what is in no group is left alone.
    """
    for group in optimizer.param_groups:
        kept = []
        for old in group["params"]:
            if (new := replaced.get(old)) is None:
                kept.append(old)
                continue
            state = optimizer.state.pop(old, None)
            old.grad = None
            if not new.parameter.numel():
                continue
            kept.append(new.parameter)
            if state and (gathered := _shrunk(state, old, new)):
                optimizer.state[new.parameter] = gathered
        group["params"] = kept


def _shrunk(state: Mapping[str, Any], old: nn.Parameter, new: Shrunk) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            found[key] = value
        elif value.shape == old.shape and value.is_floating_point():
            found[key] = value.index_select(new.dim, new.left)
        else:
            return {}
    return found
