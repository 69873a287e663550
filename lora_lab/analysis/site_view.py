"""One site's ΔW against its W₀, ready to be drawn."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import computable, to_numpy
from lora_lab.analysis.leading import leading_directions
from lora_lab.analysis.sites import AdapterLike, naming
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import SiteUpdate


@dataclass(frozen=True)
class SiteView:
    """One site's ΔW at one step, ready to be drawn.

    Attributes:
        site: the site's name.
        step: the optimizer step of the factors.
        shape: (out, in) of ΔW and W₀.
        singular_values: (m,) float32, descending.
        effective_rank, stable_rank, frobenius_norm: of ΔW.
        overlap: (m, directions) float32, |u_iᵀw_j|² of ΔW's output directions u_i with W₀'s
            strongest ones w_j; a row is NaN where ΔW has no such direction (σ_i is 0).
        random_overlap: what unrelated directions would give, 1/out.
        amplification: ‖ΔW‖_F/‖UᵀW₀V‖_F; NaN for a zero ΔW.
        random_amplification: the same ΔW along random directions; see `spectra`.
    """

    site: str
    step: int
    shape: tuple[int, int]
    singular_values: np.ndarray
    effective_rank: float
    stable_rank: float
    frobenius_norm: float
    overlap: np.ndarray
    random_overlap: float
    amplification: float
    random_amplification: float


def site_view(measured: SiteUpdate, W: Any, directions: int = 24) -> SiteView:
    """Measure one site's ΔW against its W₀, for drawing.

    Args:
        measured: a copy of the site's update, as a `Snapshot` holds it.
        W: W₀ of the site (out, in), NumPy or torch, any dtype and device. Its leading directions
            are kept, so the next step of the same site costs no SVD.
        directions: how many of W₀'s directions to compare with.

    Raises:
        AdapterError: an update that does not fit W₀, or NaN in it.
        ModelError: NaN in W₀.
    """
    name, step = measured.site.name, measured.step or 0
    W = computable(W)
    with naming(name):
        # As tensors on W₀'s device, which may be a GPU; NumPy stays NumPy.
        U, s, Vt = measured.update.beside(W).triplets()
    overlap = to_numpy(spectra.direction_overlap(U, leading_directions(W, directions)))
    overlap[int(spectra.numerical_rank(s)) :] = np.nan
    return SiteView(
        site=name,
        step=step,
        shape=tuple(W.shape),
        singular_values=to_numpy(s),
        effective_rank=float(spectra.effective_rank(s)),
        stable_rank=float(spectra.stable_rank(s)),
        frobenius_norm=float(spectra.frobenius(s)),
        overlap=overlap,
        random_overlap=spectra.random_direction_overlap(W.shape[0]),
        amplification=float(spectra.amplification(U, s, Vt, W)),
        random_amplification=float(spectra.random_amplification(s, W)),
    )


def live_view(
    adapter: AdapterLike, site_name: str, step: int = 0, directions: int = 24
) -> SiteView:
    """Return the `site_view` of a site of a live adapter, as it is now.

    Raises:
        AdapterError: the adapter has no such site; see also `site_view`.
    """
    if site_name not in adapter.sites:
        near = difflib.get_close_matches(site_name, adapter.sites, n=3, cutoff=0)
        raise AdapterError(f"the adapter has no matrix {site_name!r}; near: {', '.join(near)}")
    site = adapter.sites[site_name]
    measured = SiteUpdate(site.site, site.update.to_numpy(), step)
    return site_view(measured, adapter.base_weight(site_name), directions)
