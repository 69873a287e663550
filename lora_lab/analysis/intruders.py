"""Intruder dimensions: strong directions of W₀ + ΔW that W₀ does not have, and life without them.

Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (NeurIPS 2025).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lora_lab import spectra
from lora_lab._util.arrays import computable, to_numpy
from lora_lab.analysis.leading import BaseWeight
from lora_lab.analysis.losses import Losses
from lora_lab.analysis.sites import AdaptedSite, naming
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import activate, active, attached
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.layers import AdaptedLayer

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.prompts import Example

_NEIGHBOURS = 5  # directions of W₀ on either side of the best match that make its window


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
            neighbours of nearly equal σ, which is no intruder in truth.
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
        task_losses: (k,) nats a completion token of the task's examples.
        base_losses: (k,) nats a token of text that the base model wrote itself. On average that is
            `base_reference` and the KL divergence from the base model: a measure of forgetting.
        count: how many intruders were scaled.
        note: what was measured, in one line.
        base_reference: the base model's own loss on that text, nats a token; NaN if not known.
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


@contextlib.contextmanager
def scaled_intruders(
    model: nn.Module, found: Iterable[SiteIntruders], factor: float, name: str | None = None
) -> Iterator[None]:
    """Let an adapter act with its intruders scaled: as W₀ + ΔW + (λ − 1)·Σ u·σ·vᵀ.

    >>> with scaled_intruders(lm.model, find_intruders(…), 0.7):
    ...     generate(lm.model, lm.tokenizer, prompts)

    Inside the block the sites hold other factors, of higher rank; no weight is touched, and
    afterwards every parameter is the very object that it was, also when the block raises. Not
    while the adapter trains: pause the run before.

    Args:
        model: the model with the adapter that `found` was found for; found again after training.
        found: what `find_intruders` returned; sites without intruders stay as they are.
        factor: λ; 1 changes nothing, 0 takes the intruders out, as W₀ + ΔW − Σ u·σ·vᵀ.
        name: the adapter, active inside the block; by default the one that is active.

    Raises:
        AdapterError: no such adapter, a merged one, sites that it does not have, or sites that do
            not act as W₀ + ΔW on a vector: embeddings, DoRA's.
        ConfigError: `factor` is not a finite number.
    """
    if not math.isfinite(factor):
        raise ConfigError(f"the intruders' factor λ is {factor}; it must be a finite number")
    before = active(model)
    adapter = _factored(model, name or before)
    pairs = [(_own_site(adapter, intruders), intruders) for intruders in found]
    kept = [(site, site.A, site.B) for site, _ in pairs]
    try:
        activate(model, adapter.name)
        for site, intruders in pairs:
            if intruders.count and factor != 1:
                site.A, site.B = _with_scaled(site, intruders, factor)
        yield
    finally:
        for site, A, B in kept:
            site.A, site.B = A, B
        activate(model, before)


def intruder_curve(
    lm: LoadedModel,
    examples: Sequence[Example],
    found: Sequence[SiteIntruders],
    *,
    factors: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    base_texts: Sequence[str] | None = None,
    losses: Losses | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> IntruderCurve:
    """Measure the task's and the base model's loss at every λ.

    The model is as before afterwards. Not while it trains: pause the run before.

    Args:
        lm: a causal language model with the adapter that `found` was found for, active.
        examples: prompts with the completions that the adapter learned to write.
        found: what `find_intruders` returned.
        factors: the λ to measure.
        base_texts: text that the base model should still expect; by default what it writes itself,
            drawn token by token from its own distribution with a fixed seed.
        losses: made before for the same model; then nothing is written or read again, and
            `examples` and `base_texts` are not looked at.
        should_stop: asked before every batch and token; the curve then has the λ that were done.
        on_progress: called with (parts done, parts in all) after each part, the text being one.

    Raises:
        AdapterError: see `scaled_intruders`.
        TaskError: a model that writes no text, or nothing to measure on.
    """
    stop = should_stop or (lambda: False)
    tell = on_progress or (lambda *_: None)
    with scaled_intruders(lm.model, found, 1.0):  # refuses what does not fit before the long work
        measured = losses or Losses(lm, examples, base_texts, stop)
    measured.should_stop = stop
    rows: list[tuple[float, float, float]] = []
    if measured.ready:
        tell(1, len(factors) + 1)
        for factor in factors:
            with scaled_intruders(lm.model, found, factor):
                task, base = measured.of_task(), measured.of_base()
            if task is None or base is None:
                break
            rows.append((factor, task, base))
            tell(len(rows) + 1, len(factors) + 1)
    columns = np.array(rows, np.float64).reshape(-1, 3).T
    count, sites = sum(item.count for item in found), sum(item.count > 0 for item in found)
    return IntruderCurve(
        factors=columns[0],
        task_losses=columns[1],
        base_losses=columns[2],
        count=count,
        note=f"{count} intruders at {sites} of {len(found)} sites; {measured.describe()}",
        base_reference=measured.base_reference,
    )


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
    window = spectra.window_match(U, X, best - _NEIGHBOURS, best + _NEIGHBOURS + 1)
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


def _factored(model: nn.Module, name: str | None) -> LoraAdapter:
    adapters = attached(model)
    known = ", ".join(map(repr, adapters)) or "none"
    if name is None:
        raise AdapterError(f"no adapter is active; name one of {known}")
    if name not in adapters:
        raise AdapterError(f"no adapter is called {name!r}; attached are {known}")
    adapter = adapters[name]
    if not isinstance(adapter, LoraAdapter) or adapter.method != "LoRA":
        raise AdapterError(f"{name!r} is {adapter.method}; only LoRA's factors can be exchanged")
    if not any(isinstance(module, AdaptedLayer) for module in model.modules()):
        raise AdapterError(f"adapter {active(model)!r} is merged; call unmerge(model) first")
    return adapter


def _own_site(adapter: LoraAdapter, intruders: SiteIntruders) -> LoraSite:
    site = adapter.sites.get(intruders.name)
    out, in_ = intruders.U.shape[0], intruders.Vt.shape[1]
    if site is None or site.update.shape != (out, in_):
        raise AdapterError(
            f"adapter {adapter.name!r} has no site {intruders.name!r} of {out} × {in_}; "
            "find its own intruders first"
        )
    if site.site.kind == "embedding" or site.magnitude is not None:
        what = "an embedding" if site.site.kind == "embedding" else "a DoRA site"
        raise AdapterError(
            f"{intruders.name} is {what}, whose intruders cannot be scaled; leave it out of `found`"
        )
    return site


def _with_scaled(
    site: LoraSite, intruders: SiteIntruders, factor: float
) -> tuple[nn.Parameter, nn.Parameter]:
    """Return factors of ΔW + (λ − 1)·Σ u·σ·vᵀ.

    They are taken from the sum's own triplets: in half precision, one part's rounding would else
    be as large as what is left of two that cancel.
    """
    A, B = computable(site.A), computable(site.B)
    Us, Vt = torch.as_tensor(intruders.U * intruders.s), torch.as_tensor(intruders.Vt)
    U, s, Vt = spectra.singular_triplets_of_sum(
        [(A, B, site.scale), (Vt.to(A), Us.to(B), factor - 1)]
    )
    root = s.sqrt()
    new_A, new_B = (root[:, None] * Vt).to(site.A), (U * root / site.scale).to(site.B)
    return nn.Parameter(new_A, requires_grad=False), nn.Parameter(new_B, requires_grad=False)
