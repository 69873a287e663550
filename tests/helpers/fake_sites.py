"""Adapted sites without a model, and their ΔW built in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_lab.anatomy import Site
from lora_lab.spectra import LowRankUpdate, SiteUpdate


def place(name: str = "layers.3.q", d: int = 12, k: int = 16) -> Site:
    return Site(name, name, 3, "q", in_features=k, out_features=d, stack="decoder")


def site(
    seed: int = 0,
    d: int = 12,
    k: int = 16,
    r: int = 3,
    scale: float = 0.5,
    library: Any = np.array,
    initial: bool = False,
    name: str = "layers.3.q",
) -> SiteUpdate:
    """Random float32 factors; with `initial` also those that the adapter began with."""
    rng = np.random.default_rng(seed)

    def factor(*shape: int) -> Any:
        return library(rng.standard_normal(shape).astype(np.float32))

    update = LowRankUpdate(factor(r, k), factor(d, r), scale)
    if initial:
        update = update._replace(initial=(factor(r, k), factor(d, r)))
    return SiteUpdate(place(name, d, k), update)


def planted(U: np.ndarray, s: Any, Vt: np.ndarray, name: str = "layers.3.q") -> SiteUpdate:
    """A site whose ΔW has these singular triplets: U (d, r), s (r,), Vt (r, k)."""
    B = (U * (np.asarray(s) / 2)).astype(np.float32)
    update = LowRankUpdate(Vt.astype(np.float32), B, 2.0)
    return SiteUpdate(place(name, len(U), Vt.shape[1]), update)


def delta(of: SiteUpdate) -> np.ndarray:
    """ΔW (d, k), built in float64."""

    def double(x: Any) -> np.ndarray:
        return np.asarray(x.detach() if hasattr(x, "detach") else x, np.float64)

    A, B, scale, _, initial = of.update
    built = double(B) @ double(A)
    if initial is not None:
        A_0, B_0 = initial
        built = built - double(B_0) @ double(A_0)
    return scale * built


def weight(seed: int = 0, d: int = 12, k: int = 16) -> np.ndarray:
    """W₀ (d, k), float32, of spectrum 2, 1.9 … so that no two directions are confused."""
    rng = np.random.default_rng(1000 + seed)
    U = np.linalg.qr(rng.standard_normal((d, min(d, k))))[0]
    V = np.linalg.qr(rng.standard_normal((k, min(d, k))))[0]
    return ((U * np.linspace(2, 0.5, min(d, k))) @ V.T).astype(np.float32)
