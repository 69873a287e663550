"""The operator y = W₀x + b + Σ s·B(Ax): hand-written gradients, whole matrices and fused slices.

W₀ is frozen, so a plain linear layer would not keep its input. Learning A does need x, so that is
what is saved, once, together with the factors and the thin H = Ax; the update is added into W₀x in
place and the backward pass is written by hand. Nothing of the size of y is ever saved or copied.

Layers that read one and the same x (q, k and v; gate and up) share one pass through their A's: the
first of them, the leader, computes every H, the others take theirs. Only the leader saves x, and in
the backward pass it alone computes every dA and adds the update's part to dx, in one product each.

Under autocast x, the factors and W₀ are cast as autocast would cast them, but no cast W₀ is kept
for the backward pass: it is cast again there.

The products are taken in this order for every shape. W₀ + sBA, built on the fly, needs fewer
operations from N > dk/(d+k) on. Measured (CPU, float32 and bf16, r = 8, d = k = 576 to 2,048) it
takes 0.9 to 2 times as long at 64 tokens and 0.97 to 1.01 times at 4,096: not worth a second way.

Shapes, for N tokens, k inputs, d outputs and rank r: x (N, k), W₀ (d, k), A (r, k), B (d, r).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_lab._util.own_random import native_dropout
from lora_lab._util.torch_private import functorch_is_active, in_shape
from lora_lab.anatomy.types import Rows
from lora_lab.methods.lora.backward_passes import (
    ByHand,
    by_hand,
    is_twice_differentiable,
    saved_for,
)
from lora_lab.spectra.update import LowRankUpdate

Terms = Sequence[LowRankUpdate]  # of s·BA each, `initial` taken apart


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    terms: Terms,
    transposed: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Return W₀x + b + Σ s·B(Ax) (Hu et al., 2022, equation 3).

    Args:
        x: (..., k), in the dtype of the weight, or any that autocast casts.
        weight: W₀, (d, k), or (k, d) when `transposed`; its gradient is not computed here.
        bias: (d,) or None.
        terms: the updates; A and B are cast down to x's dtype, x is never cast up.
        transposed: the weight is stored as transformers' Conv1D does.
        dropout: probability on the way into every A; 0 outside training. All terms see the same
            dropped x; its mask is kept as bytes.

    Returns:
        (..., d) in x's dtype, or in autocast's.
    """
    if needs_plain_path(x, weight, bias):
        base = F.linear(x, weight.T if transposed else weight, bias)
        return add_terms(base, x, terms, dropout)
    return leading_linear(x, weight, bias, terms, (), transposed, dropout)[0]


def leading_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    terms: Terms,
    others: Sequence[Tensor],
    transposed: bool = False,
    dropout: float = 0.0,
    ended: Callable[[], None] | None = None,
) -> tuple[Tensor, ...]:
    """Return (y, H of every other A): `lowrank_linear`, and the thin products of its followers.

    Args:
        x, weight, bias, terms, transposed, dropout: as in `lowrank_linear`; `needs_plain_path` is
            False.
        others: the followers' A's, (r, k) each.
        ended: called when the backward pass gets here: nobody else can join this graph then.

    Returns:
        y (..., d), and for each of `others` H = Ax, (N, r).
    """
    A = [term.A for term in terms] + [*others]
    B = [term.B for term in terms]
    layout = tuple((term.scale, term.rows) for term in terms)
    x = x.to(computing_dtype(x))
    found: tuple[Tensor, ...] = _Leading.apply(
        x, weight, bias, transposed, layout, dropout, ended, *A, *B
    )
    return found


def following_linear(
    x: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    terms: Terms,
    transposed: bool = False,
) -> Tensor:
    """Return `lowrank_linear` where H = Ax is known already; x itself is not saved.

    Args:
        x, weight, bias, terms, transposed: as in `lowrank_linear`.
        hidden: (N, Σr), what `leading_linear` gave for the terms' stacked A.
    """
    B = [term.B for term in terms]
    layout = tuple((term.scale, term.rows) for term in terms)
    x = x.to(computing_dtype(x))
    y: Tensor = _Following.apply(x, hidden, weight, bias, transposed, layout, *B)
    return y


def add_terms(base: Tensor, x: Tensor, terms: Terms, dropout: float = 0.0) -> Tensor:
    """Return base + Σ s·B(A·dropout(x)) in plain differentiable steps.

    The fallback wherever the hand-written functions cannot go (torch.compile, torch.func, layers
    that are more than a matrix product), and the oracle of their tests. `base` (..., d) is not
    changed.
    """
    y = base
    for term in terms:
        inputs = x.to(term.A.device)  # accelerate may run a layer elsewhere than its caller
        inputs = F.dropout(inputs, dropout) if dropout else inputs
        A, B = term.A.to(x.dtype), term.B.to(x.dtype)
        update = (F.linear(F.linear(inputs, A), B) * term.scale).to(y)
        if term.rows is None:
            y = y + update
        else:
            y = y.clone() if y is base else y
            owned_columns(y, term.rows).add_(update.unflatten(-1, (term.rows.groups, -1)))
    return y


def owned_columns(y: Tensor, rows: Rows) -> Tensor:
    """Return the columns of y (..., d_fused) that a site owns, as a view (..., groups, width)."""
    return y.unflatten(-1, (rows.groups, rows.group_size)).narrow(-1, rows.offset, rows.width)


def needs_plain_path(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the hand-written functions cannot go here, and `add_terms` must."""
    return (
        torch.compiler.is_compiling()
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        # Autocast leaves float64 alone, and what it does cast gets one dtype.
        or (x.dtype != weight.dtype and not (_casts(x) and _casts(weight)))
        or functorch_is_active()
        or is_twice_differentiable()
    )


def computing_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that a layer computes in: autocast's where it is on, x's elsewhere."""
    return torch.get_autocast_dtype(x.device.type) if _casts(x) else x.dtype


def _casts(tensor: Tensor) -> bool:
    """Whether autocast is on and would cast this tensor."""
    return (
        torch.is_autocast_enabled(tensor.device.type)
        and tensor.is_floating_point()
        and tensor.dtype != torch.float64
    )


_Layout = tuple[tuple[float, Rows | None], ...]  # (scale, rows) of every term


class _Leading(ByHand):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., k)
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        layout: _Layout,
        dropout: float,
        ended: Callable[[], None] | None,
        *factors: Tensor,  # the A of every term, the followers' A's, the B of every term
    ) -> tuple[Tensor, ...]:
        As, Bs = factors[: len(factors) - len(layout)], factors[len(factors) - len(layout) :]
        flat = x.reshape(-1, x.shape[-1])  # (N, k)
        mask = None
        seen = flat
        if dropout:
            seen, mask = native_dropout(flat, dropout)  # mask: one byte an entry
        stacked = _joined(As).to(x.dtype)  # (Σr, k): every term shares one pass over x
        hidden = F.linear(seen, stacked)  # (N, Σr)
        ranks = [A.shape[0] for A in As]
        thin = _columns(hidden, ranks)
        Bs = tuple(_cast_down(B, x.dtype) for B in Bs)
        y = _base(flat, weight, bias, transposed)  # (N, d)
        for H, B, (scale, rows) in zip(thin, Bs, layout, strict=False):
            _add_update(y, H, B, scale, rows)
        # Where no A is learned (LoRA-FA), nothing needs x any more. Detached: the same numbers, but
        # whoever holds an H does not keep the caller's x from going (see `SharedInput`).
        kept_x = flat.detach() if any(ctx.needs_input_grad[7 : 7 + len(As)]) else None
        own = hidden if len(As) == len(layout) else hidden[:, : sum(ranks[: len(layout)])]
        ctx.save_for_backward(kept_x, weight, own, mask, stacked, *Bs)
        ctx.transposed, ctx.layout, ctx.ranks, ctx.dropout = transposed, layout, ranks, dropout
        ctx.ended, ctx.device, ctx.left, ctx.shape = ended, x.device.type, None, x.shape
        ctx.set_materialize_grads(False)
        # Copies, since views of one tensor could not be given out: they are thin.
        return in_shape(y, [*x.shape[:-1], y.shape[1]]), *(H.clone() for H in thin[len(layout) :])

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.ended is not None:
            ctx.ended()
        dy, *d_hidden = grads  # (..., d), and what the followers found for their H; None: unused
        x, weight, own, mask, stacked, *Bs = saved_for(ctx, [grad is not None for grad in grads])
        keep = 1 / (1 - ctx.dropout)
        used = [dy is not None] * len(Bs) + [dH is not None for dH in d_hidden]
        Zs: Sequence[Tensor | None] = [None] * len(Bs)
        dBs: Sequence[Tensor | None] = Zs
        if dy is not None:
            dy = dy.reshape(-1, dy.shape[-1])
            Zs, dBs = _update_gradients(dy, own, Bs, ctx.ranks, ctx.layout)
        thin = zip([*Zs, *d_hidden], ctx.ranks, strict=True)
        Z = _joined([own.new_zeros(len(own), r) if z is None else z for z, r in thin], 1)  # (N, Σr)
        # Gradients of factors are cast to the masters' dtype by torch's engine.
        dAs: Sequence[Tensor | None] = [None] * len(ctx.ranks)
        if x is not None:
            seen = x if mask is None else torch.ops.aten.native_dropout_backward(x, mask, keep)
            parts = _rows(Z.T @ seen, ctx.ranks)
            # None, not zeros, for what took no part: an optimizer is to leave it alone.
            dAs = [part if learns else None for part, learns in zip(parts, used, strict=True)]
        dx = None
        if ctx.needs_input_grad[0]:
            if dy is None:
                dx = stacked.new_zeros(len(own), stacked.shape[1])
            else:
                dx = _base_gradient(dy, weight, ctx.transposed)
            if mask is None:
                dx.addmm_(Z, stacked)
            else:
                dx.add_(torch.ops.aten.native_dropout_backward(Z @ stacked, mask, keep))
            dx = dx.view(ctx.shape)
        return dx, None, None, None, None, None, None, *dAs, *dBs


class _Following(ByHand):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., k)
        hidden: Tensor,  # (N, Σr)
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        layout: _Layout,
        *Bs: Tensor,
    ) -> Tensor:
        y = _base(x.reshape(-1, x.shape[-1]), weight, bias, transposed)
        ranks = [B.shape[1] for B in Bs]
        Bs = tuple(_cast_down(B, x.dtype) for B in Bs)
        for H, B, (scale, rows) in zip(_columns(hidden, ranks), Bs, layout, strict=True):
            _add_update(y, H, B, scale, rows)
        ctx.save_for_backward(weight, hidden, *Bs)
        ctx.transposed, ctx.layout, ctx.ranks = transposed, layout, ranks
        ctx.device, ctx.shape = x.device.type, x.shape
        return in_shape(y, [*x.shape[:-1], y.shape[1]])

    @staticmethod
    @by_hand
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].reshape(-1, grads[0].shape[-1])
        weight, hidden, *Bs = ctx.saved_tensors
        Zs, dBs = _update_gradients(dy, hidden, Bs, ctx.ranks, ctx.layout)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _base_gradient(dy, weight, ctx.transposed).view(ctx.shape)
        return dx, _joined(Zs, 1), None, None, None, None, *dBs


def _base(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """Return W₀x + b, (N, d), in x's dtype."""
    weight = weight.to(x.dtype)
    return F.linear(
        x, weight.T if transposed else weight, None if bias is None else bias.to(x.dtype)
    )


def _base_gradient(dy: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """Return dY·W₀, (N, k), in dY's dtype."""
    weight = weight.to(dy.dtype)
    return dy @ (weight.T if transposed else weight)


def _add_update(y: Tensor, H: Tensor, B: Tensor, scale: float, rows: Rows | None) -> None:
    """Add s·HBᵀ to y (N, d), in place; H (N, r), B (d of the site, r)."""
    B = _upright(B)
    if rows is None:
        y.addmm_(H, B, alpha=scale)
    elif rows.groups == 1:
        y.narrow(1, rows.offset, rows.width).addmm_(H, B, alpha=scale)
    else:
        update = (H @ B).unflatten(1, (rows.groups, rows.width))
        owned_columns(y, rows).add_(update, alpha=scale)


def _update_gradients(
    dy: Tensor, hidden: Tensor, Bs: Sequence[Tensor], ranks: Sequence[int], layout: _Layout
) -> tuple[list[Tensor], list[Tensor]]:
    """Return (Z = s·dY·B, dB = s·dYᵀH) of every term: (N, r) and (d of the site, r)."""
    Zs, dBs = [], []
    thin = _columns(hidden, ranks[: len(layout)])
    for H, B, (scale, rows) in zip(thin, Bs, layout, strict=True):
        own = dy if rows is None else owned_columns(dy, rows).flatten(1)  # (N, d of the site)
        Zs.append(F.linear(own, _upright(B)).mul_(scale))
        dBs.append((H.T @ own).mul_(scale).T)  # this order is the faster GEMM
    return Zs, dBs


def _cast_down(B: Tensor, dtype: torch.dtype) -> Tensor:
    """Return B in that dtype; if it is a copy, then one that `_upright` copies no more."""
    return B if B.dtype == dtype else B.T.to(dtype).contiguous().T


def _upright(B: Tensor) -> Tensor:
    """Return Bᵀ (r, d) of long rows: products are 1.1 to 2.5 times as fast on a CPU."""
    return B.T.contiguous()


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return matrices below or beside each other; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)


def _rows(tensor: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    return (tensor,) if len(sizes) == 1 else torch.split_with_sizes(tensor, sizes)


def _columns(tensor: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    if len(sizes) == 1:
        return (tensor if tensor.shape[1] == sizes[0] else tensor[:, : sizes[0]],)
    return torch.split_with_sizes(tensor, sizes, 1)
