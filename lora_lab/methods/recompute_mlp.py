"""Less memory for gated MLPs: down(act(gate(x)) · up(x)) keeps two wide tensors, not four.

Autograd keeps gate(x), act(gate(x)), up(x) and, where the down projection learns, their product.
The second and the fourth follow from the other two by entrywise operations, which are cheap to do
again in the backward pass; no matrix product is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.class_swap import disguised
from lora_lab._util.put_back import put_back_by
from lora_lab._util.torch_private import (
    functorch_is_active,
    hooks_of,
    is_compiled,
    saving_hooks,
    storage_key,
)
from lora_lab.anatomy.gated_mlp import can_be_recomputed, is_gated_mlp
from lora_lab.errors import ConfigError
from lora_lab.methods.own_modes import class_of, plain_reduce, set_class


@contextlib.contextmanager
def recomputed_mlps(model: nn.Module, wanted: bool | None = None) -> Iterator[int]:
    """Let a model's gated MLPs keep less while the block runs; yields how many do.

    Losses and gradients are the same, bit for bit. Blocks under gradient checkpointing, which
    recomputes more, and compiled models run as ever.

    Args:
        model: the model.
        wanted: None: of those there are, whose function is SiLU or GELU; False: none.

    Raises:
        ConfigError: it is wanted, and the model has no MLP of that form.
    """
    if wanted and not any(map(is_gated_mlp, model.modules())):
        raise ConfigError(
            f"recompute_mlp: {type(model).__name__} has no MLP of the form "
            "down(act(gate(x)) · up(x)); leave recompute_mlp out"
        )
    found: list[nn.Module] = []
    if wanted is not False and not any(map(is_compiled, model.modules())):
        found += filter(can_be_recomputed, model.modules())
    classes = [class_of(module) for module in found]

    def keep_all() -> None:
        for module, own in zip(found, classes, strict=True):
            set_class(module, own)

    with put_back_by(keep_all):
        for module, own in zip(found, classes, strict=True):
            set_class(module, _recomputing(own))
        yield len(found)


class _Recomputing:
    """Mixed into an MLP's class while it keeps less; to who looks or copies it is the old one."""

    recomputes = True
    base_class: Any

    def forward(self: Any, x: Tensor) -> Tensor:
        """Return down(act(gate(x)) · up(x))."""
        gate = self.gate_proj(x)
        if not _keeps_less(self, gate):
            return cast(Tensor, self.down_proj(self.act_fn(gate) * self.up_proj(x)))
        up, activated = self.up_proj(x), self.act_fn(gate)
        kept = _Product(self.act_fn.forward, gate.detach(), up.detach())
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
            kept.watch(activated, product=False)
            product = activated * up
            kept.watch(product, product=True)
            del activated
            return cast(Tensor, self.down_proj(product))

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = cast(Any, super().__reduce_ex__(max(2, protocol)))
        return plain_reduce(made, type(self), self.base_class)


@functools.cache
def _recomputing(base: Any) -> Any:
    return disguised(_Recomputing, base, base_class=base)


def _keeps_less(mlp: Any, gate: Tensor) -> bool:
    # Where nothing before the product learns, it is all that is kept. The innermost hooks see every
    # tensor: within gradient checkpointing's, ours would keep what it means to drop. And whoever
    # listens to the function may change what it returns.
    return (
        gate.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not saving_hooks()
        and not functorch_is_active()
        and can_be_recomputed(mlp)
        and not hooks_of(mlp.act_fn)
    )


class _Product:
    """What act(gate) and act(gate)·up are made of, in their place among the saved tensors.

    The graph alone holds it: as soon as a block's part of it is gone, so are gate and up.
    """

    def __init__(self, act: Any, gate: Tensor, up: Tensor) -> None:
        self._act, self._gate, self._up = act, gate, up
        self._watched = 0, False  # a storage, and whether it is the product's
        self._made: Tensor | None = None  # act(gate), from the product's turn to its own

    def watch(self, tensor: Tensor, product: bool) -> None:
        """Let a tensor be made again, as long as it is there; the one before is so no more."""
        self._watched = storage_key(tensor.untyped_storage()), product

    def pack(self, tensor: Tensor) -> Any:
        key, product = self._watched
        own = storage_key(tensor.untyped_storage()) == key
        whole = tensor.numel() == self._gate.numel() and tensor.is_contiguous()
        return (product, tensor.shape) if own and whole else tensor

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        product, shape = packed
        made, self._made = self._made, None
        with torch.no_grad():
            activated = cast(Tensor, self._act(self._gate) if made is None else made)
            if not product:
                return activated.view(shape)
            self._made = activated
            return (activated * self._up).view(shape)
