"""Spectra over a live model: ΔW of every site and its ranks.

ΔW is never built and nothing here changes the model, so all of it may run beside a training
thread. Reading a site while the optimizer writes it gives a mixture of two neighboring steps; for
exact numbers read while the run is paused, or from a `Snapshot`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import stack, to_numpy
from lora_lab.analysis.sites import AdapterLike
from lora_lab.analysis.table import Analysis, analyze_sites
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import active, attached, no_adapter


def analyze(model: Any, name: str | None = None) -> Analysis:
    """Measure ΔW of every site of an adapter, against the frozen W₀.

    Args:
        model: a model with an attached adapter.
        name: the adapter; by default the active one, else the only one.

    Raises:
        AdapterError: no such adapter, one whose ΔW is not in low-rank factors, or a diverged one.
    """
    adapters = attached(model)
    if not adapters:
        raise no_adapter(model)
    known = ", ".join(map(repr, adapters))
    if name is None:
        name = active(model) or (next(iter(adapters)) if len(adapters) == 1 else None)
    if name is None:
        raise AdapterError(f"no adapter is active; name one of {known}")
    if name not in adapters:
        raise AdapterError(f"no adapter is called {name!r}; attached are {known}")
    adapter: Any = adapters[name]
    if not adapter.sites:
        raise AdapterError(
            f"adapter {name!r} is {adapter.method}, whose ΔW is not in low-rank factors, and these "
            "are what is measured; attach a LoRA to compare"
        )
    return analyze_sites(adapter.sites.values(), adapter.base_weight, name)


def adapter_spectra(adapter: AdapterLike) -> dict[str, np.ndarray]:
    """Return the singular values of ΔW at every site: {name: (m,) float32, descending}.

    Of DoRA these are the values of its low-rank part s·BA: the learned lengths of the rows are not
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
    values: dict[str, np.ndarray] = {}
    for names in same.values():
        scales = np.array([updates[name].scale for name in names])
        cores = stack([R_A[name] for name in names]), stack([R_B[name] for name in names])
        try:
            s = spectra.singular_values_from_triangles(*cores, scales)
        except AdapterError as error:
            raise AdapterError(f"{_first_broken(names, R_A, R_B)}: {error}") from None
        values.update(zip(names, to_numpy(s), strict=True))
    return {name: values[name] for name in sites}


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
