"""What a backward pass that is written by hand allows: once from each output, no second derivative.

Whoever needs a second one has the forward pass run in torch's own steps.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from lora_lab.errors import AdapterError

_Backward = Callable[..., tuple[Tensor | None, ...]]
_twice = contextvars.ContextVar("twice_differentiable", default=False)


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run forward passes in torch's own steps, whose gradients can be differentiated again.

    For gradient penalties, Hessians and forward-mode differentiation. They take longer and keep
    more than the hand-written ones.

    >>> with ll.twice_differentiable():
    ...     loss = model(**batch).loss
    >>> (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    """
    before = _twice.set(True)
    try:
        yield
    finally:
        _twice.reset(before)


def is_twice_differentiable() -> bool:
    """Whether forward passes are to be run in torch's own steps."""
    return _twice.get()


def by_hand(backward: _Backward) -> _Backward:
    """Make a backward pass refuse a second derivative, and ignore autocast.

    H is saved as a constant, so that a second derivative would be wrong without a word. And within
    autocast the factors of an in-place product must not be cast one by one.
    """

    def run(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        device = ctx.device
        if not torch.is_autocast_enabled(device):
            return backward(ctx, *grads)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *grads)

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return run(ctx, *grads)
        with torch.no_grad():  # create_graph
            found = run(ctx, *grads)
        learning = [grad for grad in grads if grad is not None and grad.requires_grad]
        return _NoSecond.apply(len(found), *found, *learning) if learning else found

    return once


class ByHand(torch.autograd.Function):
    """A forward pass whose backward pass is written by hand, and nothing else of it."""

    @staticmethod
    def jvp(_ctx: Any, *_: Tensor | None) -> NoReturn:
        """Refuse forward-mode differentiation."""
        raise AdapterError(
            "LoRA's forward pass is written by hand and has no forward-mode derivative; run it "
            "within `with ll.twice_differentiable():`"
        )


class _NoSecond(torch.autograd.Function):
    """Hands gradients on, and refuses to be differentiated."""

    @staticmethod
    def forward(_ctx: Any, count: int, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else grad.view_as(grad) for grad in grads[:count])

    @staticmethod
    def backward(_ctx: Any, *_: Tensor | None) -> NoReturn:
        raise AdapterError(
            "LoRA's backward pass is written by hand and has no second derivative; run the forward "
            "pass within `with ll.twice_differentiable():`"
        )


def saved_for(ctx: Any, given: list[bool]) -> Sequence[Any]:
    """Return a leader's saved tensors, also in a second pass that comes from other outputs.

    Torch frees them with the first one, and to the caller the outputs are layers of their own. So
    a pass that comes from some of the outputs leaves them on the context, for the others: the
    factors as copies, for an optimizer may step in between and not raise their `_version` (see
    `steady_weights`); x and W₀ by theirs, which is torch's own rule for what a graph has saved.

    Args:
        ctx: of the leader, with x, W₀, H, the dropout's mask and the factors saved in this order;
            its `left` is None at first.
        given: for every output whether this pass comes from it; the leader's own is the first.
    """
    if ctx.left is None:
        saved = cast(Sequence[Any], ctx.saved_tensors)
        if not all(given):
            kept, factors = saved[:4], [factor.detach().clone() for factor in saved[4:]]
            ctx.left = (*kept, *factors), [t if t is None else t._version for t in kept[:2]]
        return saved
    left, versions = ctx.left
    # From followers alone W₀ is not needed.
    needed = left[: 2 if given[0] else 1]
    if any(t is not None and t._version != v for t, v in zip(needed, versions, strict=False)):
        raise AdapterError(
            "an input or a weight of the base was changed in place between two backward passes "
            "through one forward pass; take both passes before it"
        )
    return cast(Sequence[Any], left)
