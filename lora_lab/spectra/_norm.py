"""‖·‖_F of a built matrix: the one size of W₀ that everything is measured against."""

from __future__ import annotations

from typing import Any

from lora_lab.spectra._arrays import Array, finite_weight, quiet, real

# Between these, a float32 norm lost nothing to squares that vanish or burst.
_SAFE = 1e-15, 1e15


@quiet
def matrix_norm(W: Array) -> Array:
    """Return ‖W‖_F over the last two axes, in float32 or better.

    Args:
        W: (…, out, in).

    Returns:
        An array of the batch's shape.

    Raises:
        ModelError: NaN or infinite values in W.
    """
    xp, W = real(W)
    norm = _norm(xp, W)
    if bool(xp.all((norm > _SAFE[0]) & (norm < _SAFE[1]))):
        return norm
    largest = finite_weight(xp, xp.max(xp.abs(W), axis=(-2, -1)))
    unit = xp.where(largest > 0, largest, 1)
    return largest * _norm(xp, W / unit[..., None, None])


def _norm(xp: Any, W: Array) -> Array:
    # Line by line: one float32 sum over all of a large matrix is off by 6e-4 in torch. Along the
    # memory, since torch takes fifty times as long across it (a transposed view, Conv1D's weight).
    strides = W.stride() if hasattr(W, "stride") else W.strides
    lines = xp.linalg.vector_norm(W, axis=-1 if strides[-1] <= strides[-2] else -2)
    return xp.linalg.vector_norm(lines, axis=-1)
