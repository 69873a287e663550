"""Spectra over a live model: ΔW of every site, its ranks, and how it lies against W₀.

ΔW is never built and nothing here changes the model, so all of it may run beside a training
thread. Reading a site while the optimizer writes it gives a mixture of two neighbouring steps; for
exact numbers read while the run is paused, or from a `Snapshot`.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import computable, same_library, stack, to_numpy
from lora_lab.analysis.leading import leading_directions
from lora_lab.analysis.sites import AdaptedSite, naming
from lora_lab.analysis.table import DORA_NOTE, Analysis, SiteAnalysis
from lora_lab.anatomy.blocks import Placed, cells
from lora_lab.errors import AdapterError
from lora_lab.spectra.update import SiteUpdate


class AdapterLike(Protocol):
    """What is needed of an adapter; `LoraAdapter` is one."""

    @property
    def sites(self) -> Mapping[str, Any]:
        """The adapted sites by name."""

    def base_weight(self, site_name: str) -> Any:
        """Return W₀ (out, in) of a site."""


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


@dataclass(frozen=True)
class RankMap:
    """Effective ranks as a grid: one row a role, one column a layer; NaN where nothing adapts."""

    roles: tuple[str, ...]
    layers: tuple[str, ...]  # "0", "1" …, or "enc 0", "dec 0" …
    values: np.ndarray  # (roles, layers) float32
    ranks: np.ndarray  # (roles, layers) int32: the number of singular values; 0 where none


def analyze(model: Any, name: str | None = None) -> Analysis:
    """Measure ΔW of every site of an adapter, against the frozen W₀.

    Args:
        model: a model with an attached adapter.
        name: the adapter; by default the active one, else the only one.

    Raises:
        AdapterError: no such adapter, or a diverged one (NaN).
    """
    from lora_lab.methods.attached import active, attached

    adapters = attached(model)
    if not adapters:
        raise AdapterError("the model has no adapter; call attach(model, config) first")
    known = ", ".join(map(repr, adapters))
    if name is None:
        name = active(model) or (next(iter(adapters)) if len(adapters) == 1 else None)
    if name is None:
        raise AdapterError(f"no adapter is active; name one of {known}")
    if name not in adapters:
        raise AdapterError(f"no adapter is called {name!r}; attached are {known}")
    adapter: Any = adapters[name]
    return analyze_sites(adapter.sites.values(), adapter.base_weight, name)


def analyze_sites(
    sites: Iterable[AdaptedSite],
    base_weight: Callable[[str], Any] | None = None,
    name: str = "default",
) -> Analysis:
    """Measure ΔW of factors that need no model, such as those of an adapter's file.

    Args:
        sites: the factors, site by site.
        base_weight: gives W₀ (out, in) for a site's name; None: no amplification.
        name: the adapter's name, for the table.

    Raises:
        AdapterError: a factor with NaN; the line names the site.
    """
    sites = tuple(sites)
    lengths = any(getattr(site, "magnitude", None) is not None for site in sites)
    rows = tuple(_analyze_site(site, base_weight) for site in sites)
    return Analysis(name, rows, DORA_NOTE if lengths else "")


def adapter_spectra(adapter: AdapterLike) -> dict[str, np.ndarray]:
    """Return the singular values of ΔW at every site: {name: (m,) float32, descending}.

    Of DoRA these are the values of its low-rank part s·BA: the learnt lengths of the rows are not
    in them. Where training began at W₀'s own directions (PiSSA, OLoRA), ΔW = s(BA − B₀A₀) has up
    to 2r.

    Factors of one shape go through QR together, cores of one rank through one SVD, so that all
    sites of a model take milliseconds: it may be called while training.

    Raises:
        AdapterError: a factor holds NaN or infinite values; the line names the site.
    """
    sites = adapter.sites
    updates = {name: site.update.joined() for name, site in sites.items()}
    R_A = _triangles({name: update.A.mT for name, update in updates.items()})
    R_B = _triangles({name: update.B for name, update in updates.items()})
    same: defaultdict[Any, list[str]] = defaultdict(list)
    for name in sites:
        same[_kind(R_A[name]), _kind(R_B[name])].append(name)
    found: dict[str, np.ndarray] = {}
    for names in same.values():
        scales = np.array([updates[name].scale for name in names])
        cores = stack([R_A[name] for name in names]), stack([R_B[name] for name in names])
        try:
            s = spectra.singular_values_from_triangles(*cores, scales)
        except AdapterError as error:
            raise AdapterError(f"{_first_broken(names, R_A, R_B)}: {error}") from None
        found.update(zip(names, to_numpy(s), strict=True))
    return {name: found[name] for name in sites}


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
        raise AdapterError(f"the adapter has no site {site_name!r}; near: {', '.join(near)}")
    site = adapter.sites[site_name]
    measured = SiteUpdate(site.site, site.update.to_numpy(), step)
    return site_view(measured, adapter.base_weight(site_name), directions)


def rank_map(sites: Iterable[Placed], singular_values: Mapping[str, np.ndarray]) -> RankMap:
    """Lay effective ranks out as role × layer, in the order in which roles and layers first come.

    Args:
        sites: `anatomy.grid_sites` for the whole model, or `analysis.rows` for an adapter's own.
        singular_values: {site name: σ}, as `adapter_spectra` or a `Snapshot` gives it.

    Raises:
        ModelError: two sites would have one cell.
    """
    grid = cells(sites)
    roles = list(dict.fromkeys(role for _, role in grid))
    rows = list(dict.fromkeys(row for row, _ in grid))
    values = np.full((len(roles), len(rows)), np.nan, np.float32)
    ranks = np.zeros((len(roles), len(rows)), np.int32)
    for (row, role), site in grid.items():
        s = singular_values.get(site.name)
        if s is not None:
            at = roles.index(role), rows.index(row)
            values[at], ranks[at] = spectra.effective_rank(s), len(s)
    return RankMap(tuple(roles), tuple(row.label for row in rows), values, ranks)


def _analyze_site(site: AdaptedSite, base_weight: Callable[[str], Any] | None) -> SiteAnalysis:
    name = site.site.name
    with naming(name):
        U, s, Vt = site.update.triplets()
        amplified = expected = None
        if base_weight is not None:
            W = computable(base_weight(name))
            U, s, Vt = (same_library(x, W) for x in (U, s, Vt))
            amplified = float(spectra.amplification(U, s, Vt, W))
            expected = float(spectra.random_amplification(s, W))
    return SiteAnalysis(
        name=name,
        layer=site.site.layer,
        role=site.site.role,
        r=site.update.r,
        singular_values=to_numpy(s),
        effective_rank=float(spectra.effective_rank(s)),
        stable_rank=float(spectra.stable_rank(s)),
        frobenius_norm=float(spectra.frobenius(s)),
        amplification=amplified,
        random_amplification=expected,
        stack=site.site.stack,
    )


def _first_broken(names: list[str], *factors: Mapping[str, Any]) -> str:
    return next(
        name
        for name in names
        if not all(np.isfinite(to_numpy(factor[name])).all() for factor in factors)
    )


def _triangles(factors: Mapping[str, Any]) -> dict[str, Any]:
    """Return R of every factor's QR, factors of one shape, type and device at a time."""
    same: defaultdict[Any, list[str]] = defaultdict(list)
    for name, factor in factors.items():
        same[_kind(factor)].append(name)
    return {
        name: R
        for names in same.values()
        for name, R in zip(
            names, spectra.triangle(stack([factors[name] for name in names])), strict=True
        )
    }


def _kind(x: Any) -> tuple[Any, ...]:
    return tuple(x.shape), str(x.dtype), str(getattr(x, "device", "cpu"))
