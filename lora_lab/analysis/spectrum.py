"""ΔW's spectrum beside W₀'s, and the edge of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import to_numpy
from lora_lab.analysis.leading import BaseWeight
from lora_lab.analysis.sites import AdaptedSite, naming
from lora_lab.errors import ConfigError


@dataclass(frozen=True)
class SpectrumView:
    """One site's spectra, ready to be drawn.

    Attributes:
        site: the site's name.
        step: the optimizer step of the factors; None: not known.
        delta: (m,) float32, σ of ΔW, descending; m = min(r, out, in).
        weight: (c,) float32, the strongest σ of W₀, descending.
        weight_norm: ‖W₀‖_F.
        edge: the largest σ of a random matrix of W₀'s shape and norm (Marchenko & Pastur): what of
            W₀ stands above it is structure.
    """

    site: str
    step: int | None
    delta: np.ndarray
    weight: np.ndarray
    weight_norm: float
    edge: float


def spectrum_view(
    site: AdaptedSite, W: Any, *, step: int | None = None, most: int = 64
) -> SpectrumView:
    """Measure one site's singular values against those of its W₀.

    Args:
        site: the factors.
        W: W₀ (out, in), NumPy or torch, any dtype and device. What is found of it is kept, so the
            next step of the same site costs no SVD.
        step: the optimizer step of the factors.
        most: how many of W₀'s singular values to return; above 1024² they are the leading ones of
            an iteration, each to 10⁻³·σ₁ (`spectra.top_directions`).

    Raises:
        AdapterError: an update that does not fit W₀, or NaN in it.
        ModelError: NaN in W₀.
        ConfigError: `most` below 1.
    """
    if most < 1:
        raise ConfigError(f"most is {most}; at least 1 singular value is needed")
    name = site.site.name
    with naming(name):
        site.update.check_fits(W)
        _, delta, _ = site.update.triplets()
        base = BaseWeight(W)
        weight, norm = base.leading(most)[1], base.norm
    return SpectrumView(
        site=name,
        step=step,
        delta=to_numpy(delta),
        weight=weight,
        weight_norm=norm,
        edge=float(spectra.marchenko_pastur_edge(W.shape[0], W.shape[1], norm)),
    )
