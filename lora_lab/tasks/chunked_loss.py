"""The cross-entropy of some rows, their logits made a few rows at a time, forward and backward.

Of (rows, vocabulary) logits nothing but a chunk is ever in memory: while it is there its gradient
is taken back through the output layer, so that the backward pass has nothing to compute again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lora_lab.tasks.chunk_rows import chunk_rows


def summed_cross_entropy(
    logits_of: Callable[[Tensor], Tensor],
    rows: Tensor,
    labels: Tensor,
    *,
    vocabulary: int,
    ignored: int,
    leaves: Sequence[Tensor] = (),
    expected: Tensor | float = 1.0,
    smoothing: float = 0.0,
    each: list[Tensor] | None = None,
) -> Tensor:
    """Return Σ −log softmax(logits_of(row))[label], in float32; of float64 logits in float64.

    Args:
        logits_of: (n, width) → (n, vocabulary), each row by itself.
        rows: (n, width).
        labels: int64, (n,), on the same device.
        vocabulary: logits a row.
        ignored: the label of rows that do not count.
        leaves: parameters that learn, and `logits_of` reads.
        expected: the gradient that the sum will be given. Any other is right too; in float16 with
            this one, the gradients of logits have the size that the loss scale means them to have.
        smoothing: ε of torch's `label_smoothing`: 1 − ε times that, and ε times the mean of
            −log softmax over the vocabulary.
        each: gets the rows' own losses, a chunk at a time, where no gradients are recorded.
    """
    size = chunk_rows(vocabulary, sum(map(Tensor.numel, leaves)))
    task = _Task(logits_of, labels, ignored, size, tuple(leaves), expected, smoothing, each)
    learns = torch.is_grad_enabled() and (rows.requires_grad or bool(leaves))
    if learns:
        return cast(Tensor, _Summed.apply(task, rows, *leaves))
    return task.run(rows, with_gradients=False)[0]


class _Task:
    """One sum: what it is of."""

    def __init__(
        self,
        logits_of: Callable[[Tensor], Tensor],
        labels: Tensor,
        ignored: int,
        size: int,
        leaves: tuple[Tensor, ...],
        expected: Tensor | float,
        smoothing: float,
        each: list[Tensor] | None,
    ) -> None:
        self._logits_of, self._size, self._leaves = logits_of, size, leaves
        self._smoothing, self._each = smoothing, each
        self._counts = labels != ignored
        self._labels = labels.clamp(min=0).where(self._counts, 0)
        self.expected = expected

    def run(self, rows: Tensor, with_gradients: bool) -> tuple[Tensor, list[Tensor | None]]:
        """Return the sum, and the gradients of `expected` times it: of the rows and the leaves."""
        total: Tensor | None = None
        of_rows = torch.zeros_like(rows) if with_gradients else None
        sums: list[Tensor | None] = [None] * len(self._leaves)
        for start in range(0, len(rows), self._size):
            part = slice(start, start + self._size)
            x = rows[part].detach().requires_grad_(with_gradients)
            with torch.set_grad_enabled(with_gradients):
                z = self._logits_of(x)
            with torch.no_grad():
                loss, dz = self._loss(z.detach(), part, with_gradients)
                total = loss if total is None else total + loss
            if dz is None or of_rows is None:
                continue
            # What the output layer has computed once for all passes may be asked several times.
            own, *others = torch.autograd.grad(
                z, (x, *self._leaves), dz, retain_graph=bool(self._leaves), allow_unused=True
            )
            del z, dz
            if own is not None:
                of_rows[part] = own
            sums = [_sum(a, b, self._size < len(rows)) for a, b in zip(sums, others, strict=True)]
        nothing = rows.new_zeros((), dtype=torch.float32)
        return nothing if total is None else total, [of_rows, *sums]

    def _loss(self, z: Tensor, part: slice, with_gradients: bool) -> tuple[Tensor, Tensor | None]:
        """Return a chunk's sum and the gradient of its logits, (n, vocabulary)."""
        counts, labels = self._counts[part], self._labels[part, None]
        kind, smoothing = _kind(z.dtype), self._smoothing
        odds = torch.log_softmax(z, -1, dtype=kind)
        picked = odds.gather(1, labels)[:, 0]
        if smoothing:
            picked = (1 - smoothing) * picked + smoothing * odds.mean(-1)
        losses = -picked.where(counts, 0.0)
        total = losses.sum()
        if not with_gradients:
            if self._each is not None:
                self._each.append(losses)
            return total, None
        odds.exp_().scatter_add_(1, labels, odds.new_full((), smoothing - 1.0).expand_as(labels))
        if smoothing:
            odds.sub_(smoothing / z.shape[-1])
        weights = counts.to(kind) * self.expected
        return total, odds.mul_(weights[:, None]).to(z.dtype)


def _kind(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _sum(before: Tensor | None, new: Tensor | None, several: bool) -> Tensor | None:
    """Add in float32 what is of fewer bits: it is rounded once, as one product of all would be."""
    if new is None:
        return before
    new = new.to(_kind(new.dtype)) if several else new
    return new if before is None else before + new


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, task: _Task, rows: Tensor, *leaves: Tensor) -> Tensor:
        total, ctx.gradients = task.run(rows, with_gradients=True)
        ctx.expected, ctx.dtypes = task.expected, [t.dtype for t in (rows, *leaves)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.gradients = ctx.gradients, None
        if found is None:
            raise RuntimeError("the gradients of this loss were taken once, and are gone")
        ratio = gradient / ctx.expected
        kinds = ctx.dtypes[::-1]
        # One after the other is let go of: of a head that learns as a whole each is large.
        own = [None if (g := found.pop()) is None else (g * ratio).to(kind) for kind in kinds]
        return None, *own[::-1]
