"""A bias of B's own: y = W₀x + b + s·(BAx + β), PEFT's lora_bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Rows
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.lora.layers import AdaptedLayer, LayerSites


class BiasedSites(LayerSites):
    """One adapter's sites on one linear layer, each with a bias β (out,) beside its factors."""

    plain = False

    def output(self, x: Tensor, layer: AdaptedLayer) -> Tensor:
        """Return the layer's output with every site's update and bias, (..., out)."""
        y = super().output(x, layer)
        return y + self.bias().to(y.dtype)

    def bias(self) -> Tensor:
        """Return s·β of the whole layer, (out,); zero where no site has rows."""
        first = self.sites[0]
        if (rows := first.site.rows) is None:
            return cast(Tensor, first.bias) * first.scale
        whole = cast(Tensor, first.bias).new_zeros(rows.groups, rows.group_size)
        for site in self.sites:
            rows = cast(Rows, site.site.rows)
            own = whole.narrow(1, rows.offset, rows.width)
            own.add_((cast(Tensor, site.bias) * site.scale).view(own.shape))
        return whole.flatten()


def add_to(layer: nn.Linear, sites: LayerSites) -> None:
    """Add s·β to the bias of a layer that is merged apart from its quantized original."""
    if isinstance(sites, BiasedSites):
        with torch.no_grad():
            layer.bias.add_(sites.bias().to(layer.bias))


def check_readers(modules: Mapping[str, nn.Module], read: Iterable[nn.Module]) -> None:
    """Raise `ConfigError` for layers that other modules compute with past their forward."""
    found = set(read)
    for path, module in modules.items():
        if module in found:
            raise ConfigError(
                f"lora_bias=True adds to what a layer returns, and other modules read {path} past "
                "its forward; leave it out of target_modules, or lora_bias"
            )


def biased(layers: Mapping[str, tuple[nn.Module, LayerSites]]) -> dict[str, Any]:
    """Return those of the layers that have such biases."""
    return {path: own for path, own in layers.items() if isinstance(own[1], BiasedSites)}


def check_merge(layers: Mapping[str, tuple[nn.Module, LayerSites]]) -> None:
    """Raise `AdapterError` where the base has no bias to add to."""
    for path, (layer, _) in biased(layers).items():
        if layer.bias is None:
            raise AdapterError(
                f"{path} has no bias that lora_bias could be merged into; keep the adapter beside "
                "the base"
            )


def merged_biases(
    layers: Mapping[str, tuple[nn.Module, LayerSites]],
    original: Callable[[nn.Parameter], Tensor],
    dtype: torch.dtype | None,
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield (bias of the base, b + s·β), added in float32 and rounded once."""
    for layer, sites in biased(layers).values():
        if packing(layer) is None:
            b = original(layer.bias).detach()
            own = sites.bias().detach()
            precise = torch.promote_types(b.dtype, torch.float32)
            yield layer.bias, (b.to(precise) + own.to(precise)).to(dtype or b.dtype)
