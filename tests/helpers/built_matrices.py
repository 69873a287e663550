"""Factors and matrices whose spectra are known, built whole in float64: the oracle's side."""

from __future__ import annotations

import numpy as np
import torch

# NumPy in, NumPy out; torch in, torch out.
MAKERS = {"numpy": np.array, "torch": torch.tensor}


def factors(rng, r, d, k, dtype=np.float32):
    return rng.standard_normal((r, k)).astype(dtype), rng.standard_normal((d, r)).astype(dtype)


def built(A, B, scale=1.0):
    return scale * (np.asarray(B, np.float64) @ np.asarray(A, np.float64))


def orthonormal(rng, n, count):
    return np.linalg.qr(rng.standard_normal((n, count)))[0]


def with_spectrum(rng, d, k, s):
    return (orthonormal(rng, d, len(s)) * s) @ orthonormal(rng, k, len(s)).T
