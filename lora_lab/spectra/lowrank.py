"""The SVD of ΔW = s·BA, and of sums of such updates, without building them.

Source: QR of the thin factors and the SVD of the small core between them; Hu et al. (ICLR 2022),
sections 7.2 and 7.3, need nothing more of ΔW.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
from array_api_compat import device, is_numpy_namespace

from lora_lab.errors import AdapterError
from lora_lab.spectra._arrays import Array, eps, finite_update, like, promoted, quiet, real


def singular_triplets(A: Array, B: Array, scale: Array | float = 1.0) -> tuple[Array, Array, Array]:
    """Return the thin SVD of ΔW = scale·BA by QR of B and of Aᵀ, then the SVD of the r×r core.

    Args:
        A: (…, r, in).
        B: (…, out, r).
        scale: s = α/r; a number, or an array of the batch's shape.

    Returns:
        U (…, out, m) with orthonormal columns, s (…, m) descending, Vt (…, m, in) with
        orthonormal rows; m = min(r, out, in). Where σ = 0 the vectors are orthonormal but
        otherwise arbitrary. Cost O((out + in)·r²).

    Raises:
        AdapterError: shapes that do not fit, or NaN or infinite factors.
    """
    xp, A, B = _factors(A, B)
    Q_B, R_B = xp.linalg.qr(B)
    Q_A, R_A = xp.linalg.qr(A.mT)
    U, s, Vt = xp.linalg.svd(_core(R_A, R_B, scale), full_matrices=False)
    return Q_B @ U, s, Vt @ Q_A.mT


@quiet
def singular_triplets_of_sum(
    updates: Iterable[tuple[Array, Array, Array | float]],
) -> tuple[Array, Array, Array]:
    """Return the thin SVD of ΔW = Σ sᵢBᵢAᵢ, the sum never built.

    For a ΔW of two parts: inits such as PiSSA's move W₀ by −sB₀A₀, so against the original W₀ the
    update is sBA − sB₀A₀, of a rank up to 2r. The factors are stacked, [s₁B₁ s₂B₂ …]·[A₁; A₂; …],
    and taken through `singular_triplets` in float64: what the parts have in common cancels to
    1e-16 of their size, far below one float32 step of training. What is left of a complete
    cancellation is set to 0.

    Args:
        updates: (A, B, scale) of every part, as `singular_triplets` takes them; A (…, rᵢ, in) and
            B (…, out, rᵢ) of the same in, out and batch. A negative scale subtracts.

    Returns:
        U (…, out, m), s (…, m) descending, Vt (…, m, in), m = min(Σrᵢ, out, in), in the widest type
        of the parts, float32 or better.

    Raises:
        AdapterError: no parts, parts of different shapes, or NaN or infinite factors.
    """
    parts = [(*_factors(A, B), scale) for A, B, scale in updates]
    if not parts:
        raise AdapterError("a sum of updates needs at least one (A, B, scale)")
    xp, first_A, first_B, _ = parts[0]
    shape = (*first_B.shape[:-1], first_A.shape[-1])
    for _, A, B, _ in parts:
        if (*B.shape[:-1], A.shape[-1]) != shape:
            raise AdapterError(
                f"the parts of a sum differ in shape: {shape} and {(*B.shape[:-1], A.shape[-1])}; "
                "each ΔW must be of the same matrix"
            )
    dtype = xp.float64 if any(part.float64 == A.dtype for part, A, _, _ in parts) else xp.float32
    exact = functools.partial(xp.asarray, dtype=xp.float64, device=device(first_A))
    A = xp.concat([exact(A) for _, A, _, _ in parts], axis=-2)
    B = xp.concat([_scaled(exact(B), scale) for _, _, B, scale in parts], axis=-1)
    U, s, Vt = singular_triplets(A, B)
    rounding = eps(A) * A.shape[-2] * _norm(xp, A) * _norm(xp, B)
    s = xp.where(s > rounding[..., None], s, 0)
    return xp.astype(U, dtype), xp.astype(s, dtype), xp.astype(Vt, dtype)


def singular_values(A: Array, B: Array, scale: Array | float = 1.0) -> Array:
    """Return only s of `singular_triplets`, (…, m) descending: cheaper, no Q is formed.

    Raises:
        AdapterError: shapes that do not fit, or NaN or infinite factors.
    """
    _, A, B = _factors(A, B)
    return singular_values_from_triangles(triangle(A.mT), triangle(B), scale)


def triangle(X: Array) -> Array:
    """Return R (…, min(n, r), r) of the thin QR of X (…, n, r), float32 or better."""
    xp, X = real(X)
    # The standard's qr always forms Q; both libraries have a mode that does not.
    if is_numpy_namespace(xp):
        return np.linalg.qr(X, mode="r")
    return xp.linalg.qr(X, mode="r")[1]


def singular_values_from_triangles(R_A: Array, R_B: Array, scale: Array | float = 1.0) -> Array:
    """Return the singular values of scale·BA from `triangle(A.mT)` and `triangle(B)`.

    With this, factors of different widths share one batched SVD: the cores are all r×r.

    Raises:
        AdapterError: NaN or infinite values.
    """
    xp, R_A, R_B = promoted(R_A, R_B)
    return xp.linalg.svdvals(_core(R_A, R_B, scale))


def _factors(A: Array, B: Array) -> tuple[Any, Array, Array]:
    xp, A, B = promoted(A, B)
    if A.ndim < 2 or B.ndim < 2 or A.shape[-2] != B.shape[-1] or 0 in (*A.shape, *B.shape):
        raise AdapterError(
            f"A has shape {tuple(A.shape)} and B {tuple(B.shape)}; "
            "A must be (r, in) and B (out, r) with the same r ≥ 1"
        )
    return xp, A, B


@quiet
def _core(R_A: Array, R_B: Array, scale: Array | float) -> Array:
    xp, R_A, R_B = promoted(R_A, R_B)
    # LAPACK fails on NaN with a message about convergence; this one says what happened.
    return finite_update(xp, _scaled(R_B @ R_A.mT, scale))


def _scaled(X: Array, scale: Array | float) -> Array:
    return X * (like(scale, X)[..., None, None] if getattr(scale, "ndim", 0) else scale)


def _norm(xp: Any, X: Array) -> Array:
    return xp.sqrt(xp.sum(X * X, axis=(-2, -1)))
