"""The update ΔW = s·BA looked at without building it: spectra, ranks, overlap, amplification.

Pure array mathematics. NumPy in gives NumPy out, torch in gives torch out on the same device;
torch itself is never imported here. Everything is computed in float32 or better (half types are
promoted), nothing is recorded for autograd, and leading dimensions are batches.

The shapes are the paper's: A is (r, in), B is (out, r), W₀ and ΔW are (out, in). Singular vectors
come as U (out, m), s (m,) descending, Vt (m, in), with m = min(r, out, in).

Source: Hu et al., LoRA (ICLR 2022), sections 7.2 and 7.3 and appendix G.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from lora_lab.errors import AdapterError, ModelError

# A NumPy array or a torch tensor. The array API has no static type that covers both.
Array = Any

# Up to this smaller side an exact SVD of W₀ takes well under a second on one core.
_EXACT_UP_TO = 1024
# A singular triplet of a large W₀ is taken when ‖W₀v − σu‖ is below this share of σ₁.
_RESIDUAL = 1e-3
# Directions whose σ is below this many rounding errors of σ₁ are noise, not directions.
_NOISE_ROUNDINGS = 16


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
    U, s, Vt = xp.linalg.svd(_core(xp, R_A, R_B, scale), full_matrices=False)
    return Q_B @ U, s, Vt @ Q_A.mT


def singular_values(A: Array, B: Array, scale: Array | float = 1.0) -> Array:
    """Return only s of `singular_triplets`, (…, m) descending: cheaper, no Q is formed.

    Raises:
        AdapterError: shapes that do not fit, or NaN or infinite factors.
    """
    _, A, B = _factors(A, B)
    return singular_values_from_triangles(triangle(A.mT), triangle(B), scale)


def triangle(X: Array) -> Array:
    """Return R (…, min(n, r), r) of the thin QR of X (…, n, r), float32 or better."""
    xp, X = _real(X)
    return xp.linalg.qr(X, mode="r")[1] if xp is not np else np.linalg.qr(X, mode="r")


def singular_values_from_triangles(R_A: Array, R_B: Array, scale: Array | float = 1.0) -> Array:
    """Return the singular values of scale·BA from `triangle(A.mT)` and `triangle(B)`.

    With this, factors of different widths share one batched SVD: the cores are all r×r.

    Raises:
        AdapterError: NaN or infinite values.
    """
    xp, R_A, R_B = _promoted(R_A, R_B)
    return xp.linalg.svdvals(_core(xp, R_A, R_B, scale))


def effective_rank(s: Array) -> Array:
    """Return exp(−Σ p·ln p) with p = σ/Σσ (Roy & Vetterli, 2007): between 1 and m.

    Args:
        s: singular values (…, m), non-negative.

    Returns:
        An array of the batch's shape; 0 for a zero ΔW.
    """
    xp, relative, largest = _relative(s)
    total = relative.sum(-1)
    p = relative / xp.where(total > 0, total, 1)[..., None]
    entropy = -(p * xp.log(xp.where(p > 0, p, 1))).sum(-1)
    return xp.where(largest > 0, xp.exp(entropy), 0)


def stable_rank(s: Array) -> Array:
    """Return ‖ΔW‖_F²/‖ΔW‖₂² = Σσ²/σ₁² over the last axis of s (…, m); 0 for a zero ΔW."""
    _, relative, _ = _relative(s)
    return (relative * relative).sum(-1)


def frobenius(s: Array) -> Array:
    """Return ‖ΔW‖_F = √Σσ² over the last axis of s (…, m)."""
    xp, relative, largest = _relative(s)
    return largest * xp.sqrt((relative * relative).sum(-1))


def numerical_rank(s: Array) -> Array:
    """Return how many directions ΔW really has: those with σ above the rounding noise of σ₁."""
    _, s = _real(s)
    return _live(s).sum(-1)


def direction_overlap(U: Array, W: Array) -> Array:
    """Return the squared cosines |u_iᵀw_j|² between single directions.

    Args:
        U: (…, n, i) with orthonormal columns, such as ΔW's left singular vectors.
        W: (…, n, j) with orthonormal columns, such as W₀'s leading left singular vectors.

    Returns:
        (…, i, j) in [0, 1]. Two unrelated directions of Rⁿ have 1/n on average
        (`random_direction_overlap`).
    """
    _, U, W = _promoted(U, W)
    cosines = U.mT @ W
    return cosines * cosines


def random_direction_overlap(n: int) -> float:
    """Return E|uᵀw|² = 1/n for independent random unit vectors of Rⁿ: exact."""
    return 1.0 / n


def subspace_overlap(U: Array, V: Array) -> Array:
    """Return φ(i, j) = ‖U_iᵀV_j‖_F² / min(i, j) for all leading subspaces (section 7.2, eq. 4).

    φ is the mean cos² of the principal angles between the first i directions of U and the first
    j of V: 0 for orthogonal subspaces, 1 where one contains the other.

    Args:
        U: (…, n, i_max) with orthonormal columns, strongest direction first.
        V: (…, n, j_max), likewise.

    Returns:
        (…, i_max, j_max); entry [i−1, j−1] is φ(i, j).
    """
    squared = direction_overlap(U, V)
    sums = squared.cumsum(-1).cumsum(-2)
    return sums / _like(_smaller(squared.shape[-2], squared.shape[-1]), squared)


def random_subspace_overlap(i_max: int, j_max: int, n: int) -> np.ndarray:
    """Return E φ(i, j) = max(i, j)/n for independent random subspaces of Rⁿ: exact, (i_max, j_max).

    Near 0 in GPT-3 (n = 12288), not in a small model: 64 × 64 directions in n = 128 give 0.5.
    """
    i, j = np.arange(1, i_max + 1), np.arange(1, j_max + 1)
    return np.maximum(i[:, None], j[None, :]) / n


def amplification(U: Array, s: Array, Vt: Array, W: Array) -> Array:
    """Return the amplification factor ‖ΔW‖_F / ‖UᵀW₀V‖_F (section 7.3, table 7).

    How much more of ΔW's own directions the update holds than W₀ did: a large factor means that
    ΔW strengthens what W₀ hardly had. U and V are the singular directions of ΔW that are really
    there (`numerical_rank`), so a rank that ΔW does not use changes nothing. ΔW contains α/r.

    Args:
        U, s, Vt: ΔW's singular triplets, as `singular_triplets` returns them.
        W: W₀ (…, out, in).

    Returns:
        An array of the batch's shape. NaN for a zero ΔW, which has no directions; infinity when
        W₀ is zero along all of them.

    Raises:
        ModelError: W₀ holds NaN or infinite values along ΔW's directions.
    """
    xp, U, s = _promoted(U, s)
    _, Vt, W = _promoted(Vt, W)
    live = _live(s)
    inner = (U.mT @ W) @ Vt.mT
    inner = xp.where(live[..., :, None] & live[..., None, :], inner, 0)
    if not bool(xp.isfinite(inner).all()):
        raise ModelError("W₀ holds NaN or infinite values; load the base model again")
    held = xp.sqrt((inner * inner).sum((-2, -1)))
    size = frobenius(s)
    ratio = size / xp.where(held > 0, held, 1)
    ratio = xp.where(held > 0, ratio, math.inf)
    return xp.where(size > 0, ratio, math.nan)


def random_amplification(s: Array, W: Array) -> Array:
    """Return what `amplification` would be if ΔW's directions had nothing to do with W₀.

    ‖ΔW‖_F divided by `random_projection`: the same ΔW turned into random directions. To be shown
    beside the amplification as "random directions"; the quotient random / actual says how many
    times more of W₀ lies along ΔW's directions than along random ones (15.9 for GPT-3, r = 4).

    Args:
        s: ΔW's singular values (…, m).
        W: W₀ (…, out, in).

    Returns:
        An array of the batch's shape; NaN for a zero ΔW, infinity for a zero W₀.
    """
    xp, s, W = _promoted(s, W)
    d, k = W.shape[-2:]
    size = frobenius(s)
    held = random_projection(matrix_norm(W), _like(numerical_rank(s), s), d, k)
    ratio = xp.where(held > 0, size / xp.where(held > 0, held, 1), math.inf)
    return xp.where(size > 0, ratio, math.nan)


def random_projection(norm: Array | float, r: Array | int, d: int, k: int) -> Any:
    """Return ‖W‖_F·r/√(dk), the size of UᵀWV for random r-frames: table 7's column "Random".

    It is the exact root mean square over independent uniform frames U (d, r) and V (k, r), since
    E UUᵀ = (r/d)·I and E VVᵀ = (r/k)·I. With ‖W‖_F = 61.95 and d = k = 12288 it gives 0.0202 for
    r = 4 and 0.3227 for r = 64; the paper prints 0.02 and 0.33.
    """
    return norm * r / math.sqrt(d * k)


def matrix_norm(W: Array) -> Array:
    """Return ‖W‖_F over the last two axes, in float32 or better."""
    xp, W = _real(W)
    return xp.sqrt((W * W).sum((-2, -1)))


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
        ModelError: W holds NaN or infinite values.
    """
    xp, W = _real(W)
    if not bool(xp.isfinite(W).all()):
        raise ModelError("W₀ holds NaN or infinite values; load the base model again")
    count = min(count, *W.shape)
    if min(W.shape) > _EXACT_UP_TO:
        found = _krylov_triplets(xp, W, count)
        if found is not None:
            return found
    U, s, Vt = xp.linalg.svd(W, full_matrices=False)
    return U[:, :count], s[:count], Vt[:count]


def _krylov_triplets(xp: Any, W: Array, count: int) -> tuple[Array, Array, Array] | None:
    block = count + 8
    start = np.random.default_rng(0).standard_normal((W.shape[1], block))
    Q = xp.linalg.qr(W @ _like(start, W))[0]
    basis = Q
    while basis.shape[1] + 4 * block <= min(W.shape) // 4:
        for _ in range(4):
            Q = W @ (W.mT @ Q)
            # Once is not enough in float32: what is left after the first pass is mostly rounding.
            for _ in range(2):
                Q = xp.linalg.qr(Q - basis @ (basis.mT @ Q))[0]
            basis = xp.concatenate([basis, Q], axis=1)
        inner, s, Vt = xp.linalg.svd(basis.mT @ W, full_matrices=False)
        U, s, Vt = basis @ inner[:, :count], s[:count], Vt[:count]
        residual = W @ Vt.mT - U * s
        worst = xp.sqrt((residual * residual).sum(0).max())
        # In a W₀ of lower rank than the basis, later blocks are noise and may repeat themselves.
        skew = abs(U.mT @ U - _like(np.eye(count), U)).max()
        if bool((worst <= _RESIDUAL * s[0]) & (skew <= _RESIDUAL)):
            return U, s, Vt
    return None


def _factors(A: Array, B: Array) -> tuple[Any, Array, Array]:
    if A.ndim < 2 or B.ndim < 2 or A.shape[-2] != B.shape[-1]:
        raise AdapterError(
            f"A has shape {tuple(A.shape)} and B {tuple(B.shape)}; "
            "A must be (r, in) and B (out, r) with the same r"
        )
    return _promoted(A, B)


def _core(xp: Any, R_A: Array, R_B: Array, scale: Array | float) -> Array:
    if getattr(scale, "ndim", 0):
        scale = _like(scale, R_A)[..., None, None]
    with np.errstate(invalid="ignore", over="ignore"):  # the check below speaks for them
        core = scale * (R_B @ R_A.mT)
    # LAPACK fails on NaN with a message about convergence; this one says what happened.
    if not bool(xp.isfinite(core).all()):
        raise AdapterError(
            "ΔW holds NaN or infinite values: training diverged; "
            "load the last good checkpoint and lower the learning rate"
        )
    return core


def _live(s: Array) -> Array:
    largest = s[..., :1]
    eps = np.finfo(np.float64 if "64" in str(s.dtype) else np.float32).eps
    return (s > _NOISE_ROUNDINGS * float(eps) * largest) & (largest > 0)


def _relative(s: Array) -> tuple[Any, Array, Array]:
    """Divide by the largest σ, so that squares of tiny or huge values neither vanish nor burst."""
    xp, s = _real(s)
    largest = xp.amax(s, -1)
    return xp, s / xp.where(largest > 0, largest, 1)[..., None], largest


def _smaller(i_max: int, j_max: int) -> np.ndarray:
    return np.minimum(np.arange(1, i_max + 1)[:, None], np.arange(1, j_max + 1)[None, :])


def _namespace(x: Array) -> Any:
    """Return torch for tensors, else NumPy, without ever importing torch."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def _real(x: Array) -> tuple[Any, Array]:
    """Return the namespace and x in float32 or float64, cut off from autograd."""
    xp = _namespace(x)
    if xp is np:
        x = np.asarray(x)
        return np, x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
    x = x.detach()
    return xp, x if x.dtype in (xp.float32, xp.float64) else x.to(xp.float32)


def _promoted(x: Array, y: Array) -> tuple[Any, Array, Array]:
    """Return the namespace and both arrays in their common type, on x's device for torch."""
    xp, x = _real(x)
    if xp is np and _namespace(y) is not np:
        raise TypeError("both arrays must come from the same library: NumPy or torch")
    if xp is np:
        y = _real(y)[1]
        dtype = np.promote_types(x.dtype, y.dtype)
        return np, x.astype(dtype, copy=False), y.astype(dtype, copy=False)
    y = _real(y)[1] if _namespace(y) is xp else xp.as_tensor(y)
    dtype = xp.promote_types(x.dtype, y.dtype)
    return xp, x.to(dtype), y.to(x.device, dtype)


def _like(values: Array, x: Array) -> Array:
    """Return values as an array of x's library, type and device."""
    if _namespace(x) is np:
        return np.asarray(values).astype(x.dtype)
    return _namespace(x).as_tensor(values).to(x.device, x.dtype)
