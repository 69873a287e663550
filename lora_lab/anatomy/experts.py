"""Matrices that a module holds itself: routed experts in one tensor, a router's weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from lora_lab._util.torch_private import parameters_of
from lora_lab.anatomy.leaves import Leaf

L = TypeVar("L", bound=Leaf)


def own_matrices(leaf: L) -> list[L]:
    """Return the matrices among a module's own parameters, a tensor of experts as one.

    Args:
        leaf: an entry of the walk, with its `module`.
    """
    module: Any = leaf.module  # type: ignore[attr-defined]
    names = type(module).__name__.lower(), "".join(leaf.path[-1:]).lower()
    if not any("expert" in name or name.endswith(("router", "gate")) for name in names):
        return []
    found = []
    for name, parameter in parameters_of(module).items():
        if parameter is None or not parameter.is_floating_point() or name.endswith("bias"):
            continue
        if parameter.dim() not in (2, 3) or min(parameter.shape) < 2:
            continue
        experts = parameter.shape[0] if parameter.dim() == 3 else 1
        flipped = experts > 1 and is_transposed(module, name)
        out, in_ = map(int, parameter.shape[-2:])
        found.append(
            replace(
                leaf,
                path=(*leaf.path, name),
                features=(out, in_) if flipped else (in_, out),
                transposed=flipped,
                parameter=name,
                experts=int(experts),
            )
        )
    return found


def is_transposed(module: nn.Module, name: str) -> bool:
    """Tell whether experts are stored (experts, in, out), as gpt-oss and Llama 4 do.

    transformers' classes say it; of Llama 4, which does not, the shapes of both tensors tell.
    """
    said = getattr(module, "is_transposed", None)
    if said is not None:
        return bool(said)
    own = parameters_of(module)
    first, second = own.get("gate_up_proj"), own.get("down_proj")
    if name not in ("gate_up_proj", "down_proj") or first is None or second is None:
        return False
    wide, narrow = tuple(first.shape[1:]), tuple(second.shape[1:])
    return wide == (narrow[1], 2 * narrow[0])
