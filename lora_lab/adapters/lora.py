"""LoRA: ΔW = s·BA beside a frozen W₀ (Hu et al., 2022), and its variants with the same factors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from torch import Tensor, nn

from lora_lab.adapters.base import Active, Adapter, original_weight, register
from lora_lab.adapters.convolution import ConvSites
from lora_lab.adapters.dora import DoraSites
from lora_lab.adapters.embedding import (
    EmbeddingSite,
    EmbeddingSites,
    TiedHeadSites,
    check_embedding,
)
from lora_lab.adapters.layers import LayerSites, adapt, owned_rows, restore, share_inputs
from lora_lab.adapters.site import LoraSite
from lora_lab.anatomy import Site, anatomy, output_embedding
from lora_lab.configs import LoraConfig
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.plan import plan


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
        for p in plans:
            _check(p.site, modules[p.site.module], config)
        self.sites = {
            p.site.name: _SITES[p.site.kind](
                p, config, self._weight(modules[p.site.module], p.site)
            )
            for p in plans
        }
        self._layers: dict[str, tuple[nn.Module, LayerSites]] = {}
        for path, module in modules.items():
            sites = [s for s in self.sites.values() if s.site.module == path]
            kind = DoraSites if config.use_dora else _LAYERS[sites[0].site.kind]
            self._layers[path] = module, kind(sites)
        share_inputs(self._layers.values())
        self._tied = _tied_heads(model, self._layers.values())

    def insert(self, active: Active) -> None:
        """Hang the factors below their layers; see `Adapter.insert`."""
        for layer, sites in (*self._layers.values(), *self._tied):
            adapt(layer, self.name, sites, active)

    def remove(self) -> None:
        """Take the factors off their layers; see `Adapter.remove`."""
        for layer, _ in (*self._layers.values(), *self._tied):
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


_SITES: dict[str, type[LoraSite]] = {
    "linear": LoraSite,
    "embedding": EmbeddingSite,
    "conv": LoraSite,
}
_LAYERS: dict[str, type[LayerSites]] = {
    "linear": LayerSites,
    "embedding": EmbeddingSites,
    "conv": ConvSites,
}


def _check(site: Site, module: nn.Module, config: LoraConfig) -> None:
    """Refuse what cannot be adapted, before anything is changed."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else "no tensor"
        raise AdapterError(
            f"{site.module} holds {kind}, not floating-point weights; load it unquantised"
        )
    if site.kind != "linear" and (config.use_dora or config.starts_from_base):
        option = (
            "use_dora" if config.use_dora else f"init_lora_weights={config.init_lora_weights!r}"
        )
        raise ConfigError(
            f"{option} is for linear layers, and {site.module} is none; leave it out of "
            "target_modules"
        )
    if site.kind == "embedding":
        check_embedding(site.module, module)


def _tied_heads(
    model: nn.Module, layers: Iterable[tuple[nn.Module, LayerSites]]
) -> list[tuple[nn.Module, LayerSites]]:
    """Return the output layer with the factors of the adapted embedding whose weight it shares."""
    head = output_embedding(model)
    if head is None:
        return []
    return [
        (head, TiedHeadSites(sites.sites))
        for layer, sites in layers
        if isinstance(sites, EmbeddingSites) and layer.weight is head.weight
    ]
