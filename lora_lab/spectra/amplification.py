"""How much of W₀ lies along ΔW's directions: table 7 and the amplification factor.

Table 7 compares ‖UᵀW₀V‖_F for three choices of r directions: ΔW's own, W₀'s strongest, and random
ones. Only r×r products are needed, no SVD of W₀ but for the second, where ‖UᵀW₀V‖_F is the
`frobenius` of W₀'s r leading singular values.

Source: Hu et al. (ICLR 2022), section 7.3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lora_lab.errors import AdapterError
from lora_lab.spectra._arrays import (
    Array,
    finite_update,
    finite_weight,
    like,
    live,
    one_matrix,
    promoted,
    quiet,
)
from lora_lab.spectra._norm import matrix_norm
from lora_lab.spectra.sizes import frobenius, numerical_rank


@quiet
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
        AdapterError: directions that do not fit W₀, or NaN in s.
        ModelError: W₀ holds NaN or infinite values along ΔW's directions.
    """
    xp, U, s = promoted(U, s)
    there = like(live(s), s)
    held = projected_norm(U * there[..., None, :], W, promoted(U, Vt)[2] * there[..., :, None])
    size = frobenius(s)
    ratio = size / xp.where(held > 0, held, 1)
    ratio = xp.where(held > 0, ratio, math.inf)
    return xp.where(size > 0, ratio, math.nan)


@quiet
def projected_norm(U: Array, W: Array, Vt: Array) -> Array:
    """Return ‖UᵀWV‖_F: how much of W lies along pairs of these directions (table 7).

    Args:
        U: (…, out, i), output directions, one a column.
        W: (…, out, in).
        Vt: (…, j, in), input directions, one a row, as an SVD returns them.

    Returns:
        An array of the batch's shape. Cost O(out·in·min(i, j)).

    Raises:
        AdapterError: directions that do not fit W, or with NaN or infinite values.
        ModelError: NaN or infinite values in W along these directions.
    """
    xp, U, W = promoted(U, W)
    _, W, Vt = promoted(W, Vt)
    _, U, _ = promoted(U, W)
    if U.shape[-2] != W.shape[-2] or Vt.shape[-1] != W.shape[-1]:
        raise AdapterError(
            f"directions of {U.shape[-2]} outputs and {Vt.shape[-1]} inputs do not fit W₀ of "
            f"{W.shape[-2]} × {W.shape[-1]}; this adapter belongs to another base model"
        )
    finite_update(xp, U)
    finite_update(xp, Vt)
    inner = (U.mT @ W) @ Vt.mT if U.shape[-1] <= Vt.shape[-2] else U.mT @ (W @ Vt.mT)
    finite_weight(xp, inner)
    return xp.sqrt(xp.sum(inner * inner, axis=(-2, -1)))


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

    Raises:
        AdapterError: NaN in s.
        ModelError: NaN or infinite values in W₀.
    """
    xp, s, W = promoted(s, W)
    d, k = W.shape[-2:]
    size = frobenius(s)
    held = random_projection(matrix_norm(W), like(numerical_rank(s), s), d, k)
    ratio = xp.where(held > 0, size / xp.where(held > 0, held, 1), math.inf)
    return xp.where(size > 0, ratio, math.nan)


def random_projection(norm: Array | float, r: Array | int, d: int, k: int) -> Any:
    """Return ‖W‖_F·r/√(dk), the size of UᵀWV for random r-frames: table 7's column "Random".

    It is the exact root mean square over independent uniform frames U (d, r) and V (k, r), since
    E UUᵀ = (r/d)·I and E VVᵀ = (r/k)·I. With ‖W‖_F = 61.95 and d = k = 12288 it gives 0.0202 for
    r = 4 and 0.3227 for r = 64; the paper prints 0.02 and 0.33.
    """
    return norm * r / math.sqrt(d * k)


@quiet
def sampled_random_projection(W: Array, r: int, draws: int, seed: int) -> Array:
    """Return ‖UᵀWV‖_F of random r-frames, drawn as the paper drew its column "Random".

    `random_projection` is the root mean square of what this gives; the spread of the draws says
    what single random directions may show by chance.

    Args:
        W: one matrix (out, in).
        r: directions on each side, at most min(out, in).
        draws: how many independent pairs of uniform frames.
        seed: of NumPy's generator; the same on every library and device.

    Returns:
        (draws,) in W's library.

    Raises:
        AdapterError: r above min(out, in), or less than one direction or draw.
        ModelError: NaN or infinite values in W.
    """
    xp, W = one_matrix(W)
    d, k = W.shape
    if draws < 1 or not 1 <= r <= min(d, k):
        raise AdapterError(
            f"{draws} draws of {r} random directions in a {d} × {k} matrix; "
            f"take at least 1 draw, and 1 to {min(d, k)} directions"
        )
    rng = np.random.default_rng(seed)
    U, V = (
        xp.linalg.qr(like(rng.standard_normal((draws, n, r), np.float32), W))[0] for n in (d, k)
    )
    # All frames pass over W together, since reading W is what costs: (d, draws·r).
    together = xp.reshape(xp.permute_dims(U, (1, 0, 2)), (d, draws * r))
    inner = xp.reshape(together.mT @ W, (draws, r, k)) @ V
    finite_weight(xp, inner)
    return xp.sqrt(xp.sum(inner * inner, axis=(-2, -1)))
