"""The operator y = W₀x + b + Σ s·B(Ax): one autograd function, whole matrices and fused slices.

W₀ is frozen, so a plain linear layer would not keep its input. Learning A does need x, so that is
what is saved, once, together with the factors and the thin H = Ax; the update is added into W₀x in
place and the backward pass is written by hand. Nothing of the size of y is ever saved or copied.

Shapes, for N tokens, k inputs, d outputs and rank r: x (N, k), W₀ (d, k), A (r, k), B (d, r).
"""

from __future__ import annotations

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


def lowrank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, terms: Sequence[Term], transposed: bool = False
) -> Tensor:
    """Return W₀x + b + Σ s·B(Ax) (Hu et al., 2022, equation 3).

    Args:
        x: (..., k), in the dtype of the weight.
        weight: W₀, (d, k), or (k, d) when `transposed`; its gradient is not computed here.
        bias: (d,) or None.
        terms: the updates; A and B are cast down to x's dtype, x is never cast up.
        transposed: the weight is stored as transformers' Conv1D does.

    Returns:
        (..., d) in x's dtype.
    """
    if _plain_path_needed(x, weight, bias, terms):
        base = F.linear(x, weight.T if transposed else weight, bias)
        return add_terms(base, x, terms)
    factors = [f.to(x.dtype) for term in terms for f in (term.A, term.B)]
    layout = tuple((term.scale, term.rows) for term in terms)
    y = _LowRankLinear.apply(x.reshape(-1, x.shape[-1]), weight, bias, transposed, layout, *factors)
    return y.view(*x.shape[:-1], y.shape[-1])


def add_terms(base: Tensor, x: Tensor, terms: Sequence[Term]) -> Tensor:
    """Return base + Σ s·B(A·dropout(x)) in plain differentiable steps.

    The fallback wherever the fused function cannot go (dropout, autocast, torch.compile, layers
    that are more than a matrix product), and the oracle of its tests. `base` (..., d) is not
    changed.
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


def _plain_path_needed(
    x: Tensor, weight: Tensor, bias: Tensor | None, terms: Sequence[Term]
) -> bool:
    return (
        any(term.dropout for term in terms)
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or x.dtype != weight.dtype
        or torch.is_autocast_enabled(x.device.type)
        or torch.compiler.is_compiling()
    )


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (N, k)
        weight: Tensor,
        bias: Tensor | None,
        transposed: bool,
        layout: tuple[tuple[float, Rows | None], ...],
        *factors: Tensor,  # A, B of every term
    ) -> Tensor:
        stacked = _stack(factors[0::2])  # (Σr, k): every term shares one pass over x
        hidden = x @ stacked.T  # (N, Σr)
        y = F.linear(x, weight.T if transposed else weight, bias)  # (N, d)
        ranks = [A.shape[0] for A in factors[0::2]]
        for H, B, (scale, rows) in zip(
            hidden.split(ranks, dim=1), factors[1::2], layout, strict=True
        ):
            if rows is None:
                y.addmm_(H, B.T, alpha=scale)
            elif rows.groups == 1:
                y.narrow(1, rows.offset, rows.width).addmm_(H, B.T, alpha=scale)
            else:
                update = (H @ B.T).unflatten(1, (rows.groups, rows.width))
                owned_columns(y, rows).add_(update, alpha=scale)
        ctx.save_for_backward(x, weight, hidden, *factors)
        ctx.transposed, ctx.layout = transposed, layout
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]  # (N, d)
        x, weight, hidden, *factors = ctx.saved_tensors
        ranks = [A.shape[0] for A in factors[0::2]]
        thin, dBs = [], []
        for H, B, (scale, rows) in zip(
            hidden.split(ranks, dim=1), factors[1::2], ctx.layout, strict=True
        ):
            own = dy if rows is None else owned_columns(dy, rows).flatten(1)  # (N, d of the site)
            thin.append((own @ B).mul_(scale))  # Z = s·dY·B, (N, r)
            dBs.append((H.T @ own).mul_(scale).T)  # (d, r); this order is the faster GEMM
        Z = _stack(thin, dim=1)
        dAs = (Z.T @ x).split(ranks)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ (weight.T if ctx.transposed else weight)
            dx.addmm_(Z, _stack(factors[0::2]))
        return (
            dx,
            None,
            None,
            None,
            None,
            *(g for pair in zip(dAs, dBs, strict=True) for g in pair),
        )


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tuple(tensors), dim)
