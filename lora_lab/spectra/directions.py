"""The leading singular directions of a large matrix: W₀, or the tuned W₀ + s·BA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device, to_device

from lora_lab.errors import AdapterError, ConfigError
from lora_lab.spectra._arrays import Array, finite_update, like, one_matrix, promoted, quiet
from lora_lab.spectra._norm import matrix_norm

# Up to this smaller side an exact SVD takes well under a second on one core.
_EXACT_UP_TO = 1024
# A singular triplet of a large matrix is taken when ‖Wv − σu‖ is below this share of σ₁.
_RESIDUAL = 1e-3
# Passes over W between two looks at the residual, and extra directions that speed them up.
_PASSES, _SPARE = 4, 8


def top_directions(W: Array, count: int) -> tuple[Array, Array, Array]:
    """Return W's `count` leading singular triplets: U (out, c), s (c,), Vt (c, in).

    Up to a smaller side of 1024 this is the exact SVD, cut off. Above, a block Krylov iteration
    (Musco & Musco, 2015: subspace iteration that keeps its iterates) from a fixed random start
    goes on until ‖Wv − σu‖ ≤ 10⁻³·σ₁ for every triplet; then each σ lies within 10⁻³·σ₁ of a
    singular value of W, and the sine of a direction's error is at most 10⁻³·σ₁ over its gap to
    the next σ. When that is not reached in a quarter of W's dimension, the exact SVD answers.

    Args:
        W: one matrix (out, in).
        count: how many triplets; at most min(out, in) are returned.

    Raises:
        ConfigError: a count below 1.
        ModelError: W is not one matrix, or holds NaN or infinite values.
    """
    xp, W = one_matrix(W)
    matrix_norm(W)  # raises for NaN, in a tenth of the time that isfinite takes
    plain = _Operator(W, lambda X: W @ X, lambda Y: W.mT @ Y)
    return _leading(xp, plain, count, lambda: W)


@quiet
def top_directions_of_update(
    W: Array, A: Array, B: Array, scale: float, count: int
) -> tuple[Array, Array, Array]:
    """Return the `count` leading singular triplets of W₀ + scale·BA.

    As `top_directions`, with the same stated error, but the tuned weight is never built where W₀
    is large: W₀ and ΔW are applied one after the other.

    Args:
        W: W₀ (out, in).
        A: (r, in).
        B: (out, r).
        scale: s = α/r.
        count: how many triplets; at most min(out, in) are returned.

    Raises:
        AdapterError: factors that do not fit W₀, or NaN or infinite values in them.
        ConfigError: a count below 1.
        ModelError: W₀ is not one matrix, or holds NaN or infinite values.
    """
    W = one_matrix(W)[1]
    xp, W, A = promoted(W, A)
    _, W, B = promoted(W, B)
    _, _, A = promoted(W, A)
    r = B.shape[-1]
    if tuple(A.shape) != (r, W.shape[1]) or tuple(B.shape) != (W.shape[0], r):
        raise AdapterError(
            f"A {tuple(A.shape)} and B {tuple(B.shape)} do not fit W₀ of {tuple(W.shape)}; "
            "this adapter belongs to another base model"
        )
    matrix_norm(W)  # raises for NaN, in a tenth of the time that isfinite takes
    B = finite_update(xp, scale * B)
    finite_update(xp, A)
    tuned = _Operator(W, lambda X: W @ X + B @ (A @ X), lambda Y: W.mT @ Y + A.mT @ (B.mT @ Y))
    return _leading(xp, tuned, count, lambda: W + B @ A)


class _Operator(NamedTuple):
    """A matrix known by what it does; `weight` gives shape, type and device."""

    weight: Array
    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]


def _leading(
    xp: Any, matrix: _Operator, count: int, build: Callable[[], Array]
) -> tuple[Array, Array, Array]:
    if count < 1:
        raise ConfigError(f"the count of directions is {count}; ask for at least 1")
    count = min(count, *matrix.weight.shape)
    if min(matrix.weight.shape) > _EXACT_UP_TO:
        triplets = _krylov_triplets(xp, matrix, count)
        if triplets is not None:
            return triplets
    U, s, Vt = _exact(xp, build())
    return U[:, :count], s[:count], Vt[:count, :]


def _exact(xp: Any, W: Array) -> tuple[Array, Array, Array]:
    """Return W's thin SVD: up to a side of 1024 LAPACK's, wherever W is.

    On CUDA torch takes cuSOLVER's gesvdj. Of 300 matrices of 900 × 100 it takes 1.1 s where one
    core of a CPU takes 0.8 s (pytorch#86234), at a side of 400 it is 4 times slower than gesvd, and
    batches gain nothing: its batched kernels end at 32 × 32, and above torch goes matrix by matrix
    (`svd_cusolver`, BatchLinearAlgebraLib.cpp). So a start is the same on every device, too.
    """
    if min(W.shape) > _EXACT_UP_TO:
        U, s, Vt = xp.linalg.svd(W, full_matrices=False)
        return U, s, Vt
    home = device(W)
    U, s, Vt = xp.linalg.svd(to_device(W, "cpu"), full_matrices=False)
    return to_device(U, home), to_device(s, home), to_device(Vt, home)


def _krylov_triplets(xp: Any, matrix: _Operator, count: int) -> tuple[Array, Array, Array] | None:
    shape, block = matrix.weight.shape, count + _SPARE
    most = min(shape) // 4
    if (1 + _PASSES) * block > most:
        return None
    start = np.random.default_rng(0).standard_normal((shape[1], block))
    Q = xp.linalg.qr(matrix.apply(like(start, matrix.weight)))[0]
    basis = Q
    while basis.shape[1] + _PASSES * block <= most:
        for _ in range(_PASSES):
            Q = matrix.apply(matrix.adjoint(Q))
            # Once is not enough in float32: what is left after the first pass is mostly rounding.
            for _ in range(2):
                Q = xp.linalg.qr(Q - basis @ (basis.mT @ Q))[0]
            basis = xp.concat([basis, Q], axis=1)
        inner, s, Vt = xp.linalg.svd(matrix.adjoint(basis).mT, full_matrices=False)
        U, s, Vt = basis @ inner[:, :count], s[:count], Vt[:count, :]
        residual = matrix.apply(Vt.mT) - U * s
        worst = xp.sqrt(xp.max(xp.sum(residual * residual, axis=0)))
        # In a matrix of lower rank than the basis, later blocks are noise and may repeat.
        skew = xp.max(xp.abs(U.mT @ U - like(np.eye(count), U)))
        if bool((worst <= _RESIDUAL * s[0]) & (skew <= _RESIDUAL)):
            return U, s, Vt
    return None
