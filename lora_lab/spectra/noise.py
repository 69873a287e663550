"""What a random matrix would show: the level that a spectrum has to rise above."""

from __future__ import annotations

import math
from typing import Any

from lora_lab.spectra._arrays import Array


def marchenko_pastur_edge(out_features: int, in_features: int, norm: Array | float) -> Any:
    """Return the largest σ of a random matrix of this shape and Frobenius norm.

    ‖·‖_F·(√out + √in)/√(out·in): independent entries of variance v give σ ≤ √v·(√out + √in) as the
    matrix grows (Marchenko & Pastur, 1967), and ‖·‖_F² = v·out·in. Singular values above this edge
    are structure; those below may be noise.

    Args:
        out_features, in_features: the matrix's shape, W₀'s or ΔW's.
        norm: its ‖·‖_F; a number, or an array for several.

    Returns:
        The edge, in the units of σ and the shape of `norm`.
    """
    wide = math.sqrt(out_features) + math.sqrt(in_features)
    return norm * wide / math.sqrt(out_features * in_features)
