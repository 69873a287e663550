"""LoRA: ΔW = s·BA beside a frozen W₀ (Hu et al., 2022), and its variants with the same factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from lora_lab.adapters import initial
from lora_lab.adapters.base import Active, Adapter, original_weight, register
from lora_lab.adapters.dora import DoraSites, row_norms
from lora_lab.adapters.layers import LayerSites, adapt, owned_rows, restore, share_inputs
from lora_lab.anatomy import Site, anatomy
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError
from lora_lab.lowrank import Term
from lora_lab.plan import SitePlan, plan


class LoraSite(nn.Module):
    """A and B at one site: ΔW = scale·BA, of shape (out, in).

    Attributes:
        magnitude: DoRA's m, (out,); None without.
        initial: (A₀, B₀) where the factors started from W₀ (PiSSA, OLoRA): then
            ΔW = scale·(BA − B₀A₀). None otherwise.
    """

    A: nn.Parameter  # (r, in)
    B: nn.Parameter  # (out, r)
    A0: Tensor | None
    B0: Tensor | None

    def __init__(self, planned: SitePlan, config: LoraConfig, W: Tensor) -> None:
        super().__init__()
        self.site = planned.site
        self.scale = planned.scale
        self.alpha = planned.alpha
        self.dropout = config.lora_dropout
        d, k = planned.site.out_features, planned.site.in_features
        from_base = config.starts_from_base
        # Drawn on the CPU, so that a seed gives the same adapter on every device.
        device = "meta" if W.is_meta else W.device if from_base else "cpu"
        A = torch.empty(planned.r, k, device=device)
        B = torch.zeros(d, planned.r, device=device)
        if not W.is_meta:
            initial.fill(A, B, config.init_lora_weights, W, planned.scale)
        dtype = torch.promote_types(W.dtype, torch.float32)
        self.A = nn.Parameter(A.to(W.device, dtype), requires_grad=not config.use_lorafa)
        self.B = nn.Parameter(B.to(W.device, dtype))
        # Not in any state dict of the model: an adapter is saved without them.
        self.register_buffer("A0", self.A.detach().clone() if from_base else None, persistent=False)
        self.register_buffer("B0", self.B.detach().clone() if from_base else None, persistent=False)
        self.magnitude = nn.Parameter(row_norms(W).to(dtype)) if config.use_dora else None

    @property
    def r(self) -> int:
        """The rank of BA."""
        return self.A.shape[0]

    @property
    def initial(self) -> tuple[Tensor, Tensor] | None:
        """(A₀, B₀) that the factors started from, where these came from W₀."""
        return None if self.A0 is None or self.B0 is None else (self.A0, self.B0)

    def terms(self) -> list[Term]:
        """Return the update as the operator takes it."""
        dropout = self.dropout if self.training else 0.0
        terms = [Term(self.A, self.B, self.scale, self.site.rows, dropout)]
        if self.initial is not None:
            terms.append(Term(*self.initial, -self.scale, self.site.rows, dropout))
        return terms

    def delta(self) -> Tensor:
        """Return ΔW = s·BA or s·(BA − B₀A₀), (out, in), built in full: for merging."""
        update = self.B @ self.A
        if self.initial is not None:
            A0, B0 = self.initial
            update = update - B0 @ A0
        return update * self.scale

    def extra_repr(self) -> str:
        """Show shapes and scale in the model's repr."""
        return f"{self.site.role}, r={self.r}, scale={self.scale:g}"


class LoraAdapter(Adapter):
    """The LoRA factors of a model under one name.

    Attributes:
        name: the adapter's name.
        config: the `LoraConfig` it was made from.
        sites: {site name: `LoraSite`} in the anatomy's order.
    """

    method = "LoRA"

    def __init__(self, model: nn.Module, config: LoraConfig, name: str) -> None:
        self.name = name
        self.config = config
        self.model = model
        plans = plan(anatomy(model), config)
        modules = {p.site.module: model.get_submodule(p.site.module) for p in plans}
        for path, module in modules.items():
            _check_weight(path, module)
        self.sites = {
            p.site.name: LoraSite(p, config, self._weight(modules[p.site.module], p.site))
            for p in plans
        }
        kind = DoraSites if config.use_dora else LayerSites
        self._layers: dict[str, tuple[nn.Module, LayerSites]] = {
            path: (module, kind(s for s in self.sites.values() if s.site.module == path))
            for path, module in modules.items()
        }
        share_inputs(self._layers.values())

    def insert(self, active: Active) -> None:
        """Hang the factors below their layers; see `Adapter.insert`."""
        for layer, sites in self._layers.values():
            adapt(layer, self.name, sites, active)

    def remove(self) -> None:
        """Take the factors off their layers; see `Adapter.remove`."""
        for layer, _ in self._layers.values():
            restore(layer, self.name)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained: A (not with LoRA-FA), B and DoRA's magnitude of every site."""
        for site in self.sites.values():
            yield from (p for p in site.parameters() if p.requires_grad)

    def merged_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (weight, W₀ + ΔW), added in float32 and rounded once; one layer at a time."""
        for layer, sites in self._layers.values():
            weight = cast(nn.Parameter, layer.weight)
            yield weight, sites.merged(weight).to(weight.dtype)

    def base_weight(self, site_name: str) -> Tensor:
        """Return the frozen W₀ of a site, (out, in), also while merged or from a fused matrix."""
        site = self.sites[site_name].site
        return self._weight(self._layers[site.module][0], site)

    def _weight(self, layer: nn.Module, site: Site) -> Tensor:
        weight = original_weight(self.model, cast(nn.Parameter, layer.weight))
        return owned_rows(weight, site).reshape(site.out_features, site.in_features)


@register(LoraConfig)
def _build(model: nn.Module, config: LoraConfig, name: str) -> LoraAdapter:
    return LoraAdapter(model, config, name)


def _check_weight(path: str, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else "no tensor"
        raise AdapterError(f"{path} holds {kind}, not floating-point weights; load it unquantised")
