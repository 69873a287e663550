"""The operator y = W₀x + b + Σ s·B(Ax): hand-written gradients, whole matrices and fused slices.

W₀ is frozen, so a plain linear layer would not keep its input. Learning A does need x, so that is
what is saved, once, together with the factors and the thin H = Ax; the update is added into W₀x in
place and the backward pass is written by hand. Nothing of the size of y is ever saved or copied.

Layers that read one and the same x (q, k and v; gate and up) share one pass through their A's: the
first of them, the leader, computes every H, the others take theirs. Only the leader saves x, and in
the backward pass it alone computes every dA and adds the update's part to dx, in one product each.

Shapes, for N tokens, k inputs, d outputs and rank r: x (N, k), W₀ (d, k), A (r, k), B (d, r).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_lab.anatomy import Rows


class Term(NamedTuple):
    """One update s·BA on some rows of the output."""

    A: Tensor  # (r, k)
    B: Tensor  # (d, r), d counting only the rows that the term owns
    scale: float
    rows: Rows | None  # None: all rows
    dropout: float  # probability on the way into A; 0 outside training


class SharedInput:
    """Hands the thin H = Ax from the leader to the layers that read the same x.

    Holds what was not taken yet, for one x. Whoever comes with another x is a leader himself, so
    that a wrong guess about who shares costs a little time and nothing else.
    """

    def __init__(self) -> None:
        self._waiting: tuple[weakref.ref[Tensor], int, dict[str, Tensor]] | None = None

    def offer(self, x: Tensor, hidden: dict[str, Tensor]) -> None:
        """Keep the others' H = Ax, by layer, until they come with the same x."""
        self._waiting = (weakref.ref(x), x._version, hidden)

    def take(self, x: Tensor, layer: str) -> Tensor | None:
        """Return the layer's H if it was computed from this very x, unchanged since."""
        waiting = self._waiting  # read once: another thread may be at work on the same model
        if waiting is None or waiting[0]() is not x or waiting[1] != x._version:
            return None
        hidden = waiting[2].pop(layer, None)
        if not waiting[2]:
            self._waiting = None  # nothing is left that would keep x's graph alive
        return hidden


def lowrank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, terms: Sequence[Term], transposed: bool = False
) -> Tensor:
    """Return W₀x + b + Σ s·B(Ax) (Hu et al., 2022, equation 3).

    Args:
        x: (..., k), in the dtype of the weight.
        weight: W₀, (d, k), or (k, d) when `transposed`; its gradient is not computed here.
        bias: (d,) or None.
        terms: the updates; A and B are cast down to x's dtype, x is never cast up. With dropout,
            all terms see the same dropped x; its mask is kept as bytes.
        transposed: the weight is stored as transformers' Conv1D does.

    Returns:
        (..., d) in x's dtype.
    """
    if needs_plain_path(x, weight, bias):
        base = F.linear(x, weight.T if transposed else weight, bias)
        return add_terms(base, x, terms)
    return leading_linear(x, weight, bias, terms, (), transposed)[0]


def leading_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    terms: Sequence[Term],
    others: Sequence[Tensor],
    transposed: bool = False,
) -> tuple[Tensor, ...]:
    """Return (y, H of every other A): `lowrank_linear`, and the thin products of its followers.

    Args:
        x, weight, bias, terms, transposed: as in `lowrank_linear`; `needs_plain_path` is False.
        others: the followers' A's, (r, k) each.

    Returns:
        y (..., d), and for each of `others` H = Ax, (N, r).
    """
    A = [term.A.to(x.dtype) for term in terms] + [A.to(x.dtype) for A in others]
    B = [term.B.to(x.dtype) for term in terms]
    layout = tuple((term.scale, term.rows) for term in terms)
    dropout = terms[0].dropout if terms else 0.0
    flat = x.reshape(-1, x.shape[-1])
    y, *hidden = _Leading.apply(flat, weight, bias, transposed, layout, dropout, *A, *B)
    return y.view(*x.shape[:-1], y.shape[-1]), *hidden


def following_linear(
    x: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    terms: Sequence[Term],
    transposed: bool = False,
) -> Tensor:
    """Return `lowrank_linear` where H = Ax is known already; x itself is not saved.

    Args:
        x, weight, bias, terms, transposed: as in `lowrank_linear`.
        hidden: (N, Σr), what `leading_linear` gave for the terms' stacked A.
    """
    B = [term.B.to(x.dtype) for term in terms]
    layout = tuple((term.scale, term.rows) for term in terms)
    flat = x.reshape(-1, x.shape[-1])
    y = _Following.apply(flat, hidden, weight, bias, transposed, layout, *B)
    return y.view(*x.shape[:-1], y.shape[-1])


def add_terms(base: Tensor, x: Tensor, terms: Sequence[Term]) -> Tensor:
    """Return base + Σ s·B(A·dropout(x)) in plain differentiable steps.

    The fallback wherever the hand-written functions cannot go (autocast, torch.compile, layers that
    are more than a matrix product), and the oracle of their tests. `base` (..., d) is not changed.
    """
    y = base
    for term in terms:
        inputs = F.dropout(x, term.dropout) if term.dropout else x
        A, B = term.A.to(x.dtype), term.B.to(x.dtype)
        update = (F.linear(F.linear(inputs, A), B) * term.scale).to(y.dtype)
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
        weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or x.dtype != weight.dtype
        or torch.is_autocast_enabled(x.device.type)
        or torch.compiler.is_compiling()
    )


_Layout = tuple[tuple[float, Rows | None], ...]  # (scale, rows) of every term


class _Leading(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, k)
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        layout: _Layout,
        dropout: float,
        *factors: Tensor,  # the A of every term, the followers' A's, the B of every term
    ) -> tuple[Tensor, ...]:
        As, Bs = factors[: len(factors) - len(layout)], factors[len(factors) - len(layout) :]
        mask = None
        seen = x
        if dropout:
            seen, mask = torch.native_dropout(x, dropout, True)  # mask: one byte an entry
        stacked = _stack(As)  # (Σr, k): every term shares one pass over x
        hidden = seen @ stacked.T  # (N, Σr)
        ranks = [A.shape[0] for A in As]
        thin = hidden.split(ranks, dim=1)
        y = F.linear(x, weight.T if transposed else weight, bias)  # (N, d)
        for H, B, (scale, rows) in zip(thin, Bs, layout, strict=False):
            _add_update(y, H, B, scale, rows)
        # Where no A is learnt (LoRA-FA), nothing needs x any more.
        kept_x = x if any(ctx.needs_input_grad[6 : 6 + len(As)]) else None
        own = hidden[:, : sum(ranks[: len(layout)])]
        ctx.save_for_backward(kept_x, weight, own, mask, stacked, *Bs)
        ctx.transposed, ctx.layout, ctx.ranks, ctx.dropout = transposed, layout, ranks, dropout
        # Copies, since views of one tensor could not be given out: they are thin.
        return y, *(H.clone() for H in thin[len(layout) :])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy, *d_hidden = grads  # (N, d), and what the followers found for their H
        x, weight, own, mask, stacked, *Bs = ctx.saved_tensors
        keep = 1 / (1 - ctx.dropout)
        Zs, dBs = _update_gradients(dy, own, Bs, ctx.ranks, ctx.layout)
        Z = _stack([*Zs, *d_hidden], dim=1)  # (N, Σr)
        dAs: Sequence[Tensor | None] = [None] * len(ctx.ranks)
        if x is not None:
            seen = x if mask is None else torch.ops.aten.native_dropout_backward(x, mask, keep)
            dAs = (Z.T @ seen).split(ctx.ranks)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ (weight.T if ctx.transposed else weight)
            if mask is None:
                dx.addmm_(Z, stacked)
            else:
                dx.add_(torch.ops.aten.native_dropout_backward(Z @ stacked, mask, keep))
        return dx, None, None, None, None, None, *dAs, *dBs


class _Following(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, k)
        hidden: Tensor,  # (N, Σr)
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        layout: _Layout,
        *Bs: Tensor,
    ) -> Tensor:
        y = F.linear(x, weight.T if transposed else weight, bias)
        ranks = [B.shape[1] for B in Bs]
        for H, B, (scale, rows) in zip(hidden.split(ranks, dim=1), Bs, layout, strict=True):
            _add_update(y, H, B, scale, rows)
        ctx.save_for_backward(weight, hidden, *Bs)
        ctx.transposed, ctx.layout, ctx.ranks = transposed, layout, ranks
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        weight, hidden, *Bs = ctx.saved_tensors
        Zs, dBs = _update_gradients(dy, hidden, Bs, ctx.ranks, ctx.layout)
        dx = dy @ (weight.T if ctx.transposed else weight) if ctx.needs_input_grad[0] else None
        return dx, _stack(Zs, dim=1), None, None, None, None, *dBs


def _add_update(y: Tensor, H: Tensor, B: Tensor, scale: float, rows: Rows | None) -> None:
    """Add s·HBᵀ to y (N, d), in place; H (N, r), B (d of the site, r)."""
    if rows is None:
        y.addmm_(H, B.T, alpha=scale)
    elif rows.groups == 1:
        y.narrow(1, rows.offset, rows.width).addmm_(H, B.T, alpha=scale)
    else:
        update = (H @ B.T).unflatten(1, (rows.groups, rows.width))
        owned_columns(y, rows).add_(update, alpha=scale)


def _update_gradients(
    dy: Tensor, hidden: Tensor, Bs: Sequence[Tensor], ranks: Sequence[int], layout: _Layout
) -> tuple[list[Tensor], list[Tensor]]:
    """Return (Z = s·dY·B, dB = s·dYᵀH) of every term: (N, r) and (d of the site, r)."""
    Zs, dBs = [], []
    thin = hidden.split([*ranks[: len(layout)]], dim=1)
    for H, B, (scale, rows) in zip(thin, Bs, layout, strict=True):
        own = dy if rows is None else owned_columns(dy, rows).flatten(1)  # (N, d of the site)
        Zs.append((own @ B).mul_(scale))
        dBs.append((H.T @ own).mul_(scale).T)  # this order is the faster GEMM
    return Zs, dBs


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)
