"""A model's life without its intruder dimensions, or with a share of them.

Source: Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence" (NeurIPS 2025).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from lora_lab import spectra
from lora_lab._util.arrays import computable
from lora_lab.analysis.intruders import IntruderCurve, SiteIntruders
from lora_lab.analysis.losses import Losses
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import activate, active, attached
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.layers import AdaptedLayer

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task
    from lora_lab.tasks.prompts import Example


@contextlib.contextmanager
def scaled_intruders(
    model: nn.Module, intruders: Iterable[SiteIntruders], factor: float, name: str | None = None
) -> Iterator[None]:
    """Let an adapter act with its intruders scaled: as W₀ + ΔW + (λ − 1)·Σ u·σ·vᵀ.

    >>> with scaled_intruders(lm.model, find_intruders(…), 0.7):
    ...     generate(lm.model, lm.tokenizer, prompts)

    Inside the block the sites hold other factors, of higher rank; no weight is touched, and
    afterwards every parameter is the very object that it was, also when the block raises. Not
    while the adapter trains: pause the run before.

    Args:
        model: the model with the adapter that `intruders` were found for; find them again after
            training.
        intruders: what `find_intruders` returned; sites without intruders stay as they are.
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
    pairs = [(_own_site(adapter, own), own) for own in intruders]
    kept = [(site, site.A, site.B) for site, _ in pairs]
    try:
        activate(model, adapter.name)
        for site, own in pairs:
            if own.count and factor != 1:
                site.A, site.B = _with_scaled(site, own, factor)
        yield
    finally:
        for site, A, B in kept:
            site.A, site.B = A, B
        activate(model, before)


def intruder_curve(
    lm: LoadedModel,
    examples: Sequence[Example] | Task,
    intruders: Sequence[SiteIntruders],
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
        lm: a causal language model with the adapter that `intruders` were found for, active.
        examples: prompts with the completions that the adapter learned to write; or the task: its
            validation examples, framed as it does.
        intruders: what `find_intruders` returned.
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
    # This refuses what does not fit, before the long work.
    with scaled_intruders(lm.model, intruders, 1.0):
        measured = losses or Losses(lm, examples, base_texts, stop)
    measured.should_stop = stop
    rows: list[tuple[float, float, float]] = []
    if measured.ready:
        tell(1, len(factors) + 1)
        for factor in factors:
            with scaled_intruders(lm.model, intruders, factor):
                task, base = measured.of_task(), measured.of_base()
            if task is None or base is None:
                break
            rows.append((factor, task, base))
            tell(len(rows) + 1, len(factors) + 1)
    columns = np.array(rows, np.float64).reshape(-1, 3).T
    count, sites = sum(item.count for item in intruders), sum(item.count > 0 for item in intruders)
    return IntruderCurve(
        factors=columns[0],
        task_losses=columns[1],
        base_losses=columns[2],
        count=count,
        note=f"{count} intruders at {sites} of {len(intruders)} matrices; {measured.describe()}",
        base_reference=measured.base_reference,
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
            f"adapter {adapter.name!r} has no matrix {intruders.name!r} of {out} × {in_}; "
            "find its own intruders first"
        )
    if site.site.kind == "embedding" or site.magnitude is not None:
        what = "an embedding" if site.site.kind == "embedding" else "a matrix with DoRA"
        raise AdapterError(
            f"{intruders.name} is {what}, whose intruders cannot be scaled; leave it out"
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
