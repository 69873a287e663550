"""LoRA: ΔW = s·BA beside a frozen W₀ (Hu et al., 2022).

An adapted layer stays the module that it was: its class is swapped for a subclass whose forward
adds the active adapter's update, and its factors hang below it as `lora.<adapter>.<n>`. So names
in the state dict, tied weights and hooks stay as they are, nothing ever nests, and taking the
adapter off is swapping the class back.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab.adapters.base import Active, Adapter, original_weight, register
from lora_lab.anatomy import Site, anatomy
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError
from lora_lab.lowrank import Term, add_terms, lowrank_linear
from lora_lab.plan import SitePlan, plan


class LoraSite(nn.Module):
    """A and B at one site: ΔW = scale·BA, of shape (out, in)."""

    A: nn.Parameter  # (r, in)
    B: nn.Parameter  # (out, r)

    def __init__(self, planned: SitePlan, config: LoraConfig, weight: Tensor) -> None:
        super().__init__()
        self.site = planned.site
        self.scale = planned.scale
        self.alpha = planned.alpha
        self.dropout = config.lora_dropout
        d, k = planned.site.out_features, planned.site.in_features
        # Drawn on the CPU, so that a seed gives the same adapter on every device.
        device = "meta" if weight.is_meta else "cpu"
        A = torch.empty(planned.r, k, device=device)
        B = torch.zeros(d, planned.r, device=device)
        _fill(A, B, config.init_lora_weights)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.A = nn.Parameter(A.to(weight.device, dtype))
        self.B = nn.Parameter(B.to(weight.device, dtype))

    @property
    def r(self) -> int:
        """The rank."""
        return self.A.shape[0]

    def term(self) -> Term:
        """Return the update as the operator takes it."""
        dropout = self.dropout if self.training else 0.0
        return Term(self.A, self.B, self.scale, self.site.rows, dropout)

    def delta(self) -> Tensor:
        """Return ΔW = scale·BA, (out, in), built in full: for merging, not for looking at."""
        return (self.B @ self.A) * self.scale

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
            p.site.name: LoraSite(p, config, cast(Tensor, modules[p.site.module].weight))
            for p in plans
        }
        self._layers: dict[str, tuple[nn.Module, nn.ModuleList]] = {
            path: (module, nn.ModuleList(s for s in self.sites.values() if s.site.module == path))
            for path, module in modules.items()
        }

    def insert(self, active: Active) -> None:
        """Hang the factors below their layers; see `Adapter.insert`."""
        for layer, sites in self._layers.values():
            if not isinstance(layer, AdaptedLayer):
                layer.__class__ = _adapted_class(cast(Any, type(layer)))
            adapted = cast(AdaptedLayer, layer)
            if not hasattr(adapted, "lora"):
                adapted.lora, adapted._active = nn.ModuleDict(), active
            sites.train(layer.training)
            adapted.lora[self.name] = sites

    def remove(self) -> None:
        """Take the factors off their layers; see `Adapter.remove`."""
        for layer, _ in self._layers.values():
            if not isinstance(layer, AdaptedLayer):
                continue
            layer.lora.pop(self.name)
            if not layer.lora:
                del layer.lora, layer._active
                cast(Any, layer).__class__ = layer.base_class

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield A and B of every site."""
        for site in self.sites.values():
            yield site.A
            yield site.B

    def merged_weights(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (weight, W₀ + ΔW), added in float32 and rounded once; one layer at a time."""
        for layer, sites in self._layers.values():
            weight = cast(nn.Parameter, layer.weight)
            merged = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for site in cast(Iterable[LoraSite], sites):
                own = owned_rows(merged, site.site)
                own.add_(site.delta().detach().view(own.shape))
            yield weight, merged.to(weight.dtype)

    def base_weight(self, site_name: str) -> Tensor:
        """Return the frozen W₀ of a site, (out, in), also while merged or from a fused matrix."""
        site = self.sites[site_name].site
        layer, _ = self._layers[site.module]
        weight = original_weight(self.model, cast(nn.Parameter, layer.weight))
        return owned_rows(weight, site).reshape(site.out_features, site.in_features)


@register(LoraConfig)
def _build(model: nn.Module, config: LoraConfig, name: str) -> LoraAdapter:
    return LoraAdapter(model, config, name)


class AdaptedLayer:
    """Mixed into a layer's class while adapters hang below it."""

    base_class: type[nn.Module]
    transposed: bool  # the weight is stored (in, out), as transformers' Conv1D does
    plain_product: bool  # the base's forward is the product that the operator does in one go
    weight: nn.Parameter
    bias: nn.Parameter | None
    lora: nn.ModuleDict  # {adapter name: its sites on this layer}
    _active: Active

    def forward(self, x: Tensor) -> Tensor:
        """Return W₀x + b plus the active adapter's update, (..., d)."""
        sites = self.lora._modules.get(self._active.name)  # type: ignore[arg-type]
        if sites is None:
            return self.base_class.forward(self, x)
        terms = [site.term() for site in cast(Iterable[LoraSite], sites)]
        if self.plain_product:
            return lowrank_linear(x, self.weight, self.bias, terms, self.transposed)
        return add_terms(self.base_class.forward(self, x), x, terms)


@functools.cache
def _adapted_class(base: Any) -> type[nn.Module]:
    """Return the subclass of a layer's class that adds the active adapter's update."""
    transposed = not issubclass(base, nn.Linear)
    members: dict[str, Any] = {
        "base_class": base,
        "transposed": transposed,
        "plain_product": transposed or base.forward is nn.Linear.forward,
        "__module__": base.__module__,
    }
    return type(f"Adapted{base.__name__}", (AdaptedLayer, base), members)


def owned_rows(weight: Tensor, site: Site) -> Tensor:
    """Return the site's rows of a stored weight, a view (groups, width, in) or (out, in)."""
    matrix = weight.T if site.transposed else weight
    if site.rows is None:
        return matrix
    rows = site.rows
    return matrix.unflatten(0, (rows.groups, rows.group_size)).narrow(1, rows.offset, rows.width)


def _check_weight(path: str, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else "no tensor"
        raise AdapterError(f"{path} holds {kind}, not floating-point weights; load it unquantised")


def _fill(A: Tensor, B: Tensor, how: bool | str) -> None:
    """Initialise in place: loralib's and PEFT's default, PEFT's "gaussian", or both random."""
    if how == "gaussian":
        nn.init.normal_(A, std=1 / A.shape[0])
        return
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # U(−1/√k, 1/√k)
    if how is False:
        nn.init.kaiming_uniform_(B, a=math.sqrt(5))
