"""How large ΔW is and over how many directions it spreads, from its singular values alone.

Every function takes s (…, m), non-negative, and measures over the last axis; the leading ones are
batches. NaN or infinite values raise AdapterError: a diverged ΔW has no rank.
"""

from __future__ import annotations

from lora_lab.errors import ConfigError
from lora_lab.spectra._arrays import Array, eps, live, relative, singular


def effective_rank(s: Array) -> Array:
    """Return exp(−Σ p·ln p) with p = σ/Σσ (Roy & Vetterli, 2007): between 1 and m.

    Some code takes p = σ²/Σσ² instead, which gives smaller numbers.

    Args:
        s: singular values (…, m), non-negative.

    Returns:
        An array of the batch's shape; 0 for a zero ΔW.
    """
    xp, shares, largest = relative(s)
    total = xp.sum(shares, axis=-1)
    p = shares / xp.where(total > 0, total, 1)[..., None]
    entropy = -xp.sum(p * xp.log(xp.where(p > 0, p, 1)), axis=-1)
    return xp.where(largest > 0, xp.exp(entropy), 0)


def stable_rank(s: Array) -> Array:
    """Return ‖ΔW‖_F²/‖ΔW‖₂² = Σσ²/σ₁² over the last axis of s (…, m); 0 for a zero ΔW."""
    xp, shares, _ = relative(s)
    return xp.sum(shares * shares, axis=-1)


def participation_ratio(s: Array) -> Array:
    """Return (Σσ²)²/Σσ⁴: how many equal directions would share ΔW's energy as evenly.

    Between 1 and m, and never above `effective_rank`; 0 for a zero ΔW.
    """
    xp, shares, largest = relative(s)
    energy = shares * shares
    concentration = xp.sum(energy * energy, axis=-1)
    whole = xp.sum(energy, axis=-1)
    return xp.where(largest > 0, whole * whole / xp.where(largest > 0, concentration, 1), 0)


def rank_at_energy(s: Array, share: float = 0.9) -> Array:
    """Return the least k whose k largest σ hold that share of Σσ²: "rank-90" at 0.9.

    The measure of Biderman et al., "LoRA Learns Less and Forgets Less" (TMLR 2024). Shares that
    meet the mark up to rounding count, so nine of ten equal directions hold 0.9.

    Args:
        s: singular values (…, m).
        share: of ‖ΔW‖_F², in (0, 1].

    Returns:
        Integers of the batch's shape, between 1 and m; 0 for a zero ΔW.

    Raises:
        ConfigError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"the share of energy is {share}; it must lie above 0 and at most 1")
    xp, shares, largest = relative(s)
    shares = xp.sort(shares, axis=-1, descending=True)
    held = xp.cumulative_sum(shares * shares, axis=-1)
    mark = (share - eps(held) * held.shape[-1]) * held[..., -1:]
    below = xp.sum(xp.astype(held < mark, xp.int64), axis=-1)
    return xp.where(largest > 0, below + 1, 0)


def numerical_rank(s: Array) -> Array:
    """Return how many directions ΔW really has: those with σ above the rounding noise of σ₁."""
    xp, s = singular(s)
    return xp.sum(xp.astype(live(s), xp.int64), axis=-1)


def frobenius(s: Array) -> Array:
    """Return ‖ΔW‖_F = √Σσ² over the last axis of s (…, m)."""
    xp, shares, largest = relative(s)
    return largest * xp.sqrt(xp.sum(shares * shares, axis=-1))


def spectral_norm(s: Array) -> Array:
    """Return ‖ΔW‖₂ = σ₁ over the last axis of s (…, m)."""
    return relative(s)[2]


def nuclear_norm(s: Array) -> Array:
    """Return ‖ΔW‖_* = Σσ over the last axis of s (…, m)."""
    xp, s = singular(s)
    return xp.sum(s, axis=-1)
