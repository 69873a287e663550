"""Table 7 for every site: how much of W₀ lies along ΔW's directions, its own, and random ones.

Source: Hu et al. (ICLR 2022), section 7.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import same_library
from lora_lab.analysis.leading import BaseWeight
from lora_lab.analysis.sites import AdaptedSite, naming
from lora_lab.errors import ConfigError


@dataclass(frozen=True)
class SiteAmplification:
    """One site's row of table 7.

    Attributes:
        name, layer, role, stack: the site's place.
        r: how many directions ΔW really has. A zero ΔW has none, and nothing lies along them: the
            five sizes below the norms are 0 then.
        delta_norm: ‖ΔW‖_F.
        weight_norm: ‖W₀‖_F.
        along_delta: ‖UᵀW₀V‖_F with ΔW's r singular directions.
        along_own: the same with W₀'s top r, √(σ₁² + … + σ_r²): the most that there can be.
        along_random: the same with random r-frames, the mean of a few draws.
        random_spread: the draws' standard deviation; NaN for a single draw.
        random_level: what the draws scatter about, ‖W₀‖_F·r/√(out·in).
    """

    name: str
    layer: int | None
    role: str
    stack: str
    r: int
    delta_norm: float
    weight_norm: float
    along_delta: float
    along_own: float
    along_random: float
    random_spread: float
    random_level: float

    @property
    def factor(self) -> float:
        """The amplification factor ‖ΔW‖_F/‖UᵀW₀V‖_F: NaN for a zero ΔW, which has no directions."""
        if self.along_delta == 0:
            return math.inf if self.delta_norm > 0 else math.nan
        return self.delta_norm / self.along_delta


def amplifications(
    sites: Iterable[AdaptedSite],
    base_weight: Callable[[str], Any],
    *,
    draws: int = 3,
    seed: int = 0,
) -> tuple[SiteAmplification, ...]:
    """Return table 7's row for every site.

    W₀'s strongest directions take an SVD the first time; they are kept, and with them the random
    draws, so that the next step of the same site costs one product with W₀.

    Args:
        sites: the factors, site by site.
        base_weight: gives W₀ (out, in) for a site's name.
        draws: random pairs of r-frames for each site.
        seed: of these draws.

    Raises:
        AdapterError: an update that does not fit its W₀, or NaN in it.
        ModelError: NaN in W₀.
        ConfigError: no draws.
    """
    if draws < 1:
        raise ConfigError(f"draws is {draws}; at least 1 is needed")
    return tuple(_amplification(site, base_weight, draws, seed) for site in sites)


def _amplification(
    site: AdaptedSite, base_weight: Callable[[str], Any], draws: int, seed: int
) -> SiteAmplification:
    place = site.site
    W = base_weight(place.name)
    with naming(place.name):
        site.update.check_fits(W)
        U, s, Vt = site.update.triplets()
        r = int(spectra.numerical_rank(s))
        base = BaseWeight(W)
        along_delta, along_own, sampled = 0.0, 0.0, np.zeros(draws)
        if r > 0:
            U, Vt = (same_library(x, base.W) for x in (U[:, :r], Vt[:r, :]))
            along_delta = float(spectra.projected_norm(U, base.W, Vt))
            # As many as ΔW could have, so that a direction more at the next step is known already.
            along_own = float(spectra.frobenius(base.leading(len(s))[1][:r]))
            sampled = base.random_projections(r, draws, seed).astype(np.float64)
        weight_norm = base.norm
    return SiteAmplification(
        name=place.name,
        layer=place.layer,
        role=place.role,
        stack=place.stack,
        r=r,
        delta_norm=float(spectra.frobenius(s)),
        weight_norm=weight_norm,
        along_delta=along_delta,
        along_own=along_own,
        along_random=float(sampled.mean()),
        random_spread=float(sampled.std(ddof=1)) if draws > 1 else math.nan,
        random_level=float(spectra.random_projection(weight_norm, r, *W.shape)),
    )
