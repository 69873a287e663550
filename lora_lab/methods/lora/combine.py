"""Weighted sums of adapters: ΔW = Σ wᵢ·ΔWᵢ, exact, as one new adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from lora_lab.anatomy.api import anatomy
from lora_lab.errors import AdapterError
from lora_lab.methods.api import attach
from lora_lab.methods.attached import attached
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import config_from_ranks
from lora_lab.spectra.update import LowRankUpdate


def combine(model: nn.Module, weights: Mapping[str, float], name: str) -> LoraAdapter:
    """Attach and activate a new adapter whose update is the weighted sum of others.

    The sum is exact: factors are stacked, ranks add up (PEFT's combination "cat"). Where they would
    exceed min(out, in) of a site they are brought down to it, which loses nothing either.

    Args:
        model: a model with those adapters.
        weights: {adapter name: its factor}, any finite numbers; negative ones subtract.
        name: of the new adapter.

    Raises:
        AdapterError: an adapter that is not attached or that is not a sum of products (DoRA), or a
            weight that is no finite number.
    """
    sources = _sources(model, weights)
    terms: dict[str, list[LowRankUpdate]] = {}
    for source, weight in sources:
        for site in source.sites.values():
            own = terms.setdefault(site.site.name, [])
            own += [t._replace(scale=t.scale * weight) for t in site.update.terms()]
    with torch.no_grad():
        # AdaLoRA may have left nothing of a site.
        sums = {site: _sum(own) for site, own in terms.items() if any(t.r for t in own)}
    ranks = {site: update.r for site, update in sums.items()}
    first = sources[0][0].lora
    template = LoraConfig(lora_alpha=1, lora_dropout=first.lora_dropout)
    config = config_from_ranks(anatomy(model), ranks, template)
    # s = α/r = 1 at every site: the scales are in the factors.
    config = config.replace(lora_alpha=config.r, alpha_pattern=dict(config.rank_pattern))
    sum_ = cast(LoraAdapter, attach(model, config, name))
    with torch.no_grad():
        for site_name, update in sums.items():
            sum_.sites[site_name].A.copy_(update.A)
            sum_.sites[site_name].B.copy_(update.B)
    return sum_


def _sources(model: nn.Module, weights: Mapping[str, float]) -> list[tuple[LoraAdapter, float]]:
    adapters = attached(model)
    known = ", ".join(map(repr, adapters)) or "none"
    if not weights:
        raise AdapterError(f"weights is empty; give a factor to some of {known}")
    found = []
    for name, weight in weights.items():
        adapter = adapters.get(name)
        if adapter is None:
            raise AdapterError(f"no adapter is called {name!r}; attached are {known}")
        if any(site.site.kind == "experts" for site in adapter.sites.values()):
            raise AdapterError(
                f"adapter {name!r} adapts routed experts, which are not combined yet; merge it "
                "into the weights instead"
            )
        if not isinstance(adapter, LoraAdapter) or _holds_more(adapter):
            raise AdapterError(
                f"adapter {name!r} is not a sum of products BA; merge it into the weights instead"
            )
        if not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise AdapterError(f"the weight of {name!r} is {weight!r}; it must be a finite number")
        found.append((adapter, float(weight)))
    return found


def _holds_more(adapter: LoraAdapter) -> bool:
    lora = adapter.lora
    beside = adapter.saved.copies or adapter.tokens.rows or adapter.biases.own
    return bool(lora.use_dora or lora.lora_bias or beside)


def _sum(terms: list[LowRankUpdate]) -> LowRankUpdate:
    """Return Σ sBA with s = 1, of a rank that its matrix can have."""
    first, *others = (term.rescaled(1.0) for term in terms)
    update = first.plus(*others)
    most = min(update.shape)
    return update if update.r <= most else update.truncated(most)
