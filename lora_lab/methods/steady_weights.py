"""Blocks in which no weight is written, so that what follows from weights is computed once in them.

Nothing else may be remembered of weights. A tensor's `_version` does not tell that it was written:
torch raises it for what an in-place operation returns (tools/autograd/gen_inplace_or_view_type.py),
and the fused optimizers' return nothing (`_fused_adamw_(Tensor(a!)[] self, …) -> ()`), nor does it
see kernels of other libraries, or what is written through `.data`.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# {whose it is: what follows from its weights}, of the innermost block
_known: contextvars.ContextVar[dict[object, Any] | None] = contextvars.ContextVar(
    "known", default=None
)


@contextlib.contextmanager
def steady_weights() -> Iterator[None]:
    """Promise that no weight is written in the block: the passes up to an optimizer's step, say.

    It holds for this thread.
    """
    before = _known.set({})
    try:
        yield
    finally:
        _known.reset(before)


def once_while_steady(owner: object, compute: Callable[[], T]) -> T:
    """Return what `compute` returns; within `steady_weights` it is called once for an owner."""
    known = None if torch.compiler.is_compiling() else _known.get()
    if known is None:
        return compute()
    if owner not in known:
        known[owner] = compute()
    return known[owner]
