"""What every part of `spectra` does to its arrays first: library, type, device, and no NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_numpy_namespace

from lora_lab.errors import AdapterError, ModelError

# A NumPy array or a torch tensor. The array API has no static type that covers both.
Array = Any

# NumPy's own warnings would come before, and beside, the one line that says what is wrong.
quiet = np.errstate(invalid="ignore", over="ignore")
# Directions whose σ is below this many rounding errors of σ₁ are noise, not directions.
_NOISE_ROUNDINGS = 16


def real(x: Array) -> tuple[Any, Array]:
    """Return the namespace and x in float32 or float64, cut off from autograd."""
    if not is_array_api_obj(x):
        x = np.asarray(x)
    xp = array_namespace(x)
    if hasattr(x, "detach"):
        x = x.detach()
    return xp, x if x.dtype in (xp.float32, xp.float64) else xp.astype(x, xp.float32)


def promoted(x: Array, y: Array) -> tuple[Any, Array, Array]:
    """Return the namespace and both arrays in their common type, on x's device for torch."""
    xp, x = real(x)
    other, y = real(y)
    if is_numpy_namespace(xp) and not is_numpy_namespace(other):
        raise TypeError("both arrays must come from the same library: NumPy or torch")
    wide = x.dtype == xp.float64 or y.dtype == other.float64
    dtype = xp.float64 if wide else xp.float32
    return xp, xp.astype(x, dtype, copy=False), xp.asarray(y, dtype=dtype, device=device(x))


def like(values: Array, x: Array) -> Array:
    """Return values as an array of x's library, type and device."""
    return array_namespace(x).asarray(values, dtype=x.dtype, device=device(x))


def eps(x: Array) -> float:
    """Return the rounding error of x's type."""
    return float(array_namespace(x).finfo(x.dtype).eps)


def one_matrix(W: Array) -> tuple[Any, Array]:
    """Return the namespace and W (out, in), float32 or better.

    Raises:
        ModelError: not one matrix.
    """
    xp, W = real(W)
    if W.ndim != 2 or 0 in W.shape:
        raise ModelError(f"W₀ has shape {tuple(W.shape)}; it must be one matrix (out, in)")
    return xp, W


def finite_weight(xp: Any, x: Array) -> Array:
    """Return x, computed from W₀, if it is finite.

    Raises:
        ModelError: NaN or infinite values.
    """
    if not bool(xp.all(xp.isfinite(x))):
        raise ModelError("W₀ holds NaN or infinite values; load the base model again")
    return x


def finite_update(xp: Any, x: Array) -> Array:
    """Return x, computed from ΔW, if it is finite.

    Raises:
        AdapterError: NaN or infinite values.
    """
    if not bool(xp.all(xp.isfinite(x))):
        raise AdapterError(
            "ΔW holds NaN or infinite values: training diverged; "
            "load the last good checkpoint and lower the learning rate"
        )
    return x


def singular(s: Array) -> tuple[Any, Array]:
    """Return the namespace and singular values s (…, m), known to be finite and m ≥ 1.

    Raises:
        AdapterError: no values, or NaN or infinite ones.
    """
    xp, s = real(s)
    if s.ndim < 1 or s.shape[-1] < 1:
        raise AdapterError(f"no singular values: s has shape {tuple(s.shape)}; it must be (…, m)")
    return xp, finite_update(xp, s)


def relative(s: Array) -> tuple[Any, Array, Array]:
    """Divide by the largest σ, so that squares of tiny or huge values neither vanish nor burst.

    Returns:
        The namespace, s/σ₁ (…, m), 0 for a zero ΔW, and σ₁ with the batch's shape.

    Raises:
        AdapterError: no values, or NaN or infinite ones.
    """
    xp, s = singular(s)
    largest = xp.max(s, axis=-1)
    return xp, s / xp.where(largest > 0, largest, 1)[..., None], largest


def live(s: Array) -> Array:
    """Return which of s (…, m) stand above the rounding noise of the largest: bool (…, m)."""
    xp, s = singular(s)
    largest = xp.max(s, axis=-1)[..., None]
    return (s > _NOISE_ROUNDINGS * eps(s) * largest) & (largest > 0)


def same_space(U: Array, V: Array) -> tuple[Any, Array, Array]:
    """Return the namespace and both sets of columns, promoted, when they lie in one Rⁿ.

    Raises:
        AdapterError: not matrices, or columns of different lengths.
    """
    xp, U, V = promoted(U, V)
    if U.ndim < 2 or V.ndim < 2 or U.shape[-2] != V.shape[-2]:
        raise AdapterError(
            f"directions of shapes {tuple(U.shape)} and {tuple(V.shape)} do not lie in one space; "
            "both must be (n, count) with the same n, one direction a column"
        )
    return xp, U, V
