"""How two sets of directions lie to each other: overlaps φ, principal angles, what chance gives.

Directions are the orthonormal columns of U (…, n, count): singular vectors of ΔW or W₀, strongest
first; give the right ones as `Vt.mT`. In a small model unrelated subspaces overlap a lot, so every
overlap has its random level here.

Source: Hu et al. (ICLR 2022), section 7.2 and appendix G; Ham & Lee (2008) for the metric.
"""

from __future__ import annotations

import numpy as np

from lora_lab.errors import AdapterError
from lora_lab.spectra._arrays import Array, finite_update, like, quiet, real, same_space


@quiet
def direction_overlap(U: Array, W: Array) -> Array:
    """Return the squared cosines |u_iᵀw_j|² between single directions.

    Args:
        U: (…, n, i) with orthonormal columns, such as ΔW's left singular vectors.
        W: (…, n, j) with orthonormal columns, such as W₀'s leading left singular vectors.

    Returns:
        (…, i, j) in [0, 1]. Two unrelated directions of Rⁿ have 1/n on average
        (`random_direction_overlap`).

    Raises:
        AdapterError: directions of different spaces, or with NaN or infinite values.
    """
    xp, U, W = same_space(U, W)
    cosines = finite_update(xp, U.mT @ W)
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

    Raises:
        AdapterError: directions of different spaces, or with NaN or infinite values.
    """
    xp, squared = real(direction_overlap(U, V))
    sums = xp.cumulative_sum(xp.cumulative_sum(squared, axis=-1), axis=-2)
    i, j = _counts(squared.shape[-2], squared.shape[-1])
    return sums / like(np.minimum(i, j), squared)


def random_subspace_overlap(i_max: int, j_max: int, n: int) -> np.ndarray:
    """Return E φ(i, j) = max(i, j)/n for independent random subspaces of Rⁿ: exact, (i_max, j_max).

    Near 0 in GPT-3 (n = 12288), not in a small model: 64 × 64 directions in n = 128 give 0.5.

    Raises:
        AdapterError: more than n directions.
    """
    i, j = _counts_within(i_max, j_max, n)
    return np.maximum(i, j) / n


def random_subspace_spread(i_max: int, j_max: int, n: int) -> np.ndarray:
    """Return the standard deviation of φ(i, j) for independent random subspaces of Rⁿ: exact.

    √(2ij(n−i)(n−j) / (n²(n−1)(n+2))) / min(i, j), the variance of tr(PQ) for a fixed and a
    uniformly random projection of ranks i and j. A φ a few of these above `random_subspace_overlap`
    is no chance.

    Returns:
        (i_max, j_max); 0 where one subspace is all of Rⁿ.

    Raises:
        AdapterError: more than n directions.
    """
    i, j = _counts_within(i_max, j_max, n)
    variance = 2.0 * i * j * (n - i) * (n - j) / (n**2 * max(n - 1, 1) * (n + 2))
    return np.sqrt(variance) / np.minimum(i, j)


def excess_overlap(phi: Array, random: Array) -> Array:
    """Return (φ − m)/(1 − m): 0 at the random level m, 1 at full overlap, negative below chance.

    Args:
        phi: φ, such as `subspace_overlap` gives it.
        random: m, of the same shape or a number, such as `random_subspace_overlap` gives it.

    Returns:
        An array of φ's shape; NaN where m is 1, as all subspaces of that size overlap wholly.
    """
    xp, phi = real(phi)
    room = 1 - like(random, phi)
    return xp.where(room > 0, 1 - (1 - phi) / xp.where(room > 0, room, 1), np.nan)


@quiet
def principal_angles(U: Array, V: Array) -> Array:
    """Return the principal angles between two subspaces, in radians, ascending.

    Both the cosines and the sines are computed (Björck & Golub, 1973), so that small angles are
    as exact as large ones.

    Args:
        U: (…, n, i) with orthonormal columns.
        V: (…, n, j), likewise.

    Returns:
        (…, min(i, j)) in [0, π/2].

    Raises:
        AdapterError: directions of different spaces, or with NaN or infinite values.
    """
    xp, large, small = _ordered(U, V)
    inner = finite_update(xp, large.mT @ small)
    cosines = xp.linalg.svdvals(inner)
    sines = xp.linalg.svdvals(small - large @ inner)
    return xp.atan2(xp.flip(sines, axis=-1), cosines)


@quiet
def projection_metric(U: Array, V: Array) -> Array:
    """Return d = √(p − Σcos²θ) = √Σsin²θ, p = min(i, j): the Projection metric (Ham & Lee, 2008).

    φ = (p − d²)/p (paper, appendix G).

    Args:
        U: (…, n, i) with orthonormal columns.
        V: (…, n, j), likewise.

    Returns:
        An array of the batch's shape, between 0 (one contains the other) and √p (orthogonal).

    Raises:
        AdapterError: directions of different spaces, or with NaN or infinite values.
    """
    xp, large, small = _ordered(U, V)
    # What of the smaller subspace lies outside the larger: no difference of nearly equal numbers.
    outside = small - large @ finite_update(xp, large.mT @ small)
    return xp.sqrt(xp.sum(outside * outside, axis=(-2, -1)))


def _ordered(U: Array, V: Array) -> tuple[Array, Array, Array]:
    xp, U, V = same_space(U, V)
    return (xp, U, V) if U.shape[-1] >= V.shape[-1] else (xp, V, U)


def _counts(i_max: int, j_max: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, i_max + 1)[:, None], np.arange(1, j_max + 1)[None, :]


def _counts_within(i_max: int, j_max: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    if max(i_max, j_max) > n:
        raise AdapterError(
            f"{max(i_max, j_max)} directions do not fit into {n} dimensions; compare at most {n}"
        )
    return _counts(i_max, j_max)
