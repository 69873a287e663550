"""Intruder dimensions: strong directions of the tuned weight that W₀ did not have.

A singular vector y of W₀ + ΔW is an intruder when no singular vector of W₀ comes near it:
max_i |cos(y, x_i)| < ε. Taking a share of one away again needs no function of its own: the tuned
weight with the intruder's σ scaled by λ is W₀ + ΔW + (λ − 1)·uσvᵀ, an update of rank 1.

Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (NeurIPS 2025):
left singular vectors, the 10 strongest, ε = 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lora_lab.spectra._arrays import Array, finite_update, like, quiet, same_space


@quiet
def best_match(Y: Array, X: Array) -> Array:
    """Return how near each direction comes to any one of W₀'s: max_i |cos(y, x_i)|.

    Args:
        Y: (…, n, k), unit columns, such as the tuned weight's strongest left singular vectors.
        X: (…, n, m), orthonormal columns: all of W₀'s left singular vectors.

    Returns:
        (…, k) in [0, 1]. Chance alone gives about `intruder_line`.

    Raises:
        AdapterError: directions of different spaces, or with NaN or infinite values.
    """
    xp, Y, X = same_space(Y, X)
    return xp.max(xp.abs(finite_update(xp, X.mT @ Y)), axis=-2)


@quiet
def window_match(
    Y: Array, X: Array, start: int | Sequence[int], stop: int | Sequence[int]
) -> Array:
    """Return ‖X_windowᵀy‖: how much of each direction lies in W₀'s directions start … stop − 1.

    Where singular values of W₀ nearly coincide, the smallest ΔW turns their vectors freely among
    themselves: y then has a low `best_match` and yet lies wholly in their common subspace. It is
    no intruder when its match with that window is near 1.

    Args:
        Y: (…, n, k), unit columns.
        X: (…, n, m), orthonormal columns, strongest first.
        start, stop: the window, counted from 0, stop excluded; one for all of Y, or k of each.

    Returns:
        (…, k) in [0, 1]; 0 for an empty window.

    Raises:
        AdapterError: directions of different spaces, or with NaN or infinite values.
    """
    xp, Y, X = same_space(Y, X)
    cosines = finite_update(xp, X.mT @ Y)
    place = np.arange(X.shape[-1])[:, None]
    inside = like((np.asarray(start) <= place) & (place < np.asarray(stop)), cosines)
    return xp.sqrt(xp.sum(cosines * cosines * inside, axis=-2))


def intruder_line(n: int) -> float:
    """Return √(2·ln n/n), about what a random direction of Rⁿ has as its `best_match`.

    The largest of n cosines, each about normal with variance 1/n. An ε below this line finds
    nothing but chance: it is 0.36 for n = 64, and at n = 16 already 0.59.
    """
    return math.sqrt(2 * math.log(n) / n)
