"""Intruder dimensions: strong directions of W₀ + ΔW that W₀ does not have.

Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (NeurIPS 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_lab import spectra
from lora_lab._util.arrays import to_numpy
from lora_lab.analysis.leading import BaseWeight
from lora_lab.analysis.sites import AdaptedSite, naming
from lora_lab.errors import ConfigError

_NEIGHBORS = 5  # directions of W₀ on either side of the best match that make its window


@dataclass(frozen=True)
class SiteIntruders:
    """One site's strongest directions after training, and which of them are intruders.

    Attributes:
        name, layer, role, stack: the site's place.
        n: the dimension of the left singular vectors, out.
        singular_values: (k,) float32, the top k of W₀ + ΔW, descending.
        similarity: (k,) float32, max|cos| of their left vectors with any of W₀'s left vectors.
        window_similarity: (k,) float32, how much of the vector lies in the span of its best match
            and the five W₀ directions on either side: near 1 for one that ΔW only turned among
            neighbors of nearly equal σ, which is no intruder in truth.
        random_line: √(2·ln n/n), about what a random vector has as its similarity; where it comes
            near `epsilon`, in small models, an intruder may be chance.
        epsilon: a direction is an intruder when its similarity is below it.
        intruder: (k,) bool.
        U, s, Vt: the intruders' triplets, (out, c), (c,) and (c, in), float32.
    """

    name: str
    layer: int | None
    role: str
    stack: str
    n: int
    singular_values: np.ndarray
    similarity: np.ndarray
    window_similarity: np.ndarray
    random_line: float
    epsilon: float
    intruder: np.ndarray
    U: np.ndarray
    s: np.ndarray
    Vt: np.ndarray

    @property
    def count(self) -> int:
        """How many intruders there are."""
        return len(self.s)


@dataclass(frozen=True)
class IntruderCurve:
    """What scaling the intruders by λ does to the task, and to what the base model knew.

    Attributes:
        factors: (k,) λ; 1 is the adapter as it is, 0 the adapter without its intruders.
        task_losses: (k,) nats per completion token of the task's examples.
        base_losses: (k,) nats per token of text that the base model wrote itself. On average that
            is `base_reference` and the KL divergence from the base model: a measure of forgetting.
        count: how many intruders were scaled.
        note: what was measured, in one line.
        base_reference: the base model's own loss on that text, nats per token; NaN if not known.
    """

    factors: np.ndarray
    task_losses: np.ndarray
    base_losses: np.ndarray
    count: int
    note: str
    base_reference: float = math.nan


def find_intruders(
    sites: Iterable[AdaptedSite],
    base_weight: Callable[[str], Any],
    *,
    top_k: int = 10,
    epsilon: float = 0.5,
) -> tuple[SiteIntruders, ...]:
    """Find every site's intruder dimensions.

    All left singular vectors of W₀ are needed: an exact SVD of each W₀ the first time, seconds to
    a minute for a large one. They are kept for as long as there is room, see `leading`.

    Args:
        sites: the factors, site by site.
        base_weight: gives W₀ (out, in) for a site's name.
        top_k: how many of the strongest directions of W₀ + ΔW are looked at; the authors' 10.
        epsilon: the similarity below which one is an intruder; the authors' 0.5.

    Raises:
        AdapterError: an update that does not fit its W₀, or NaN in it.
        ModelError: NaN in W₀.
        ConfigError: `top_k` below 1, or `epsilon` outside (0, 1].
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; at least 1 direction is needed")
    if not 0 < epsilon <= 1:
        raise ConfigError(f"epsilon is {epsilon}; it must lie above 0 and at most 1")
    return tuple(_site_intruders(site, base_weight, top_k, epsilon) for site in sites)


def _site_intruders(
    site: AdaptedSite, base_weight: Callable[[str], Any], top_k: int, epsilon: float
) -> SiteIntruders:
    place = site.site
    with naming(place.name):
        base = BaseWeight(base_weight(place.name))
        A, B, scale, *_ = site.update.beside(base.W)
        tuned = spectra.top_directions_of_update(base.W, A, B, scale, top_k)
        U, s, Vt = map(to_numpy, tuned)
        X = base.left_vectors()
    similarity = np.minimum(spectra.best_match(U, X), 1)
    best = np.abs(X.T @ U).argmax(axis=0)
    window = spectra.window_match(U, X, best - _NEIGHBORS, best + _NEIGHBORS + 1)
    intruder = similarity < epsilon
    return SiteIntruders(
        name=place.name,
        layer=place.layer,
        role=place.role,
        stack=place.stack,
        n=len(X),
        singular_values=s,
        similarity=similarity,
        window_similarity=np.minimum(window, 1),
        random_line=spectra.intruder_line(len(X)),
        epsilon=epsilon,
        intruder=intruder,
        U=U[:, intruder],
        s=s[intruder],
        Vt=Vt[intruder],
    )
