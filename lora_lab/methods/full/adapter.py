"""Methods that train the model's own parameters: FT, FT-TopN and BitFit.

Such an adapter owns a second set of values; see `own_values`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.accelerate_private import is_offloaded
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.blocks import Row
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.anatomy.wrappers import module_at, parameters_within
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.full.trained_weights import missing_biases, trained_weights
from lora_lab.methods.own_values import OwnValues, check_in_place, check_own, not_floating


class FullAdapter(Adapter):
    """Tuned values of some of the model's own parameters, and new biases where BitFit makes them.

    Buffers are no part of it; see `running_statistics`.
    """

    modifies_base = True

    def __init__(self, model: nn.Module, config: FullConfig | BitFitConfig, name: str) -> None:
        self.name = name
        self.config = config
        self.method = config.method
        self._model = model
        found = anatomy(model)
        weights = trained_weights(found, config)
        new = (
            missing_biases(found) if isinstance(config, BitFitConfig) and config.new_biases else ()
        )
        by_name = dict(parameters_within(model))
        own = {weight.name: by_name[weight.name] for weight in weights}
        check_own(model, own)
        if not isinstance(config, BitFitConfig):
            blocks = {(weight.stack, weight.layer) for weight in weights}
            _check_packed(model, [s for s in found.sites if (s.stack, s.layer) in blocks])
        layers = {path: module_at(model, path) for path in new}
        _check_new(layers)
        self._values = OwnValues(own)
        self._new = {f"{path}.bias": (layer, _zeros(layer)) for path, layer in layers.items()}
        self._conflicts = [*own, *self._new, *_trained_sites(model, found, own.values())]
        self._by_location = self._located(found)

    def insert(self, active: Active) -> None:
        """Do nothing: the parameters are there already; see `set_active`."""

    def remove(self) -> None:
        """Do nothing: an adapter that is off has left nothing on the model."""

    def set_active(self, on: bool) -> None:
        """Change the values; new biases come and go. See `OwnValues.set_active`."""
        if on == self._values.on:
            return
        check_in_place(self._model, self._values.own)
        self._values.set_active(on)
        for layer, bias in self._new.values():
            if on:
                bias.data = bias.data.to(cast(Tensor, layer.weight))
            cast(Any, layer).bias = bias if on else None

    def acts_at(self) -> Iterator[nn.Module]:
        """Yield the layers that get a bias."""
        yield from (layer for layer, _ in self._new.values())

    def base_value(self, weight: nn.Parameter) -> Tensor | None:
        """Return W₀ of a parameter while the tuned values are in the model, else None."""
        return self._values.base_value(weight)

    def conflicts(self) -> Iterator[str]:
        """Yield the names of the parameters, and of the sites whose matrix is one of them."""
        yield from self._conflicts

    def check_merge(self) -> None:
        """Raise `AdapterError` where there are new biases."""
        if self._new:
            raise AdapterError(
                f"{next(iter(self._new))} is new, and the base's architecture has no place for it; "
                "leave the adapter beside the base, and save it with save_adapter(model, folder)"
            )

    def merged_weights(
        self, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (parameter, tuned value); see `OwnValues.merged_weights`."""
        self.check_merge()
        yield from self._values.merged_weights(dtype)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the model's own parameters, tied ones once, and the new biases.

        They hold the tuned values only while the adapter is on; `state` always tells.
        """
        yield from self._values.parameters()
        yield from (bias for _, bias in self._new.values())

    def parameters_by_location(self) -> dict[str, Sequence[nn.Parameter]]:
        """Return {"the model": …} for FT, else the parameters block by block."""
        return dict(self._by_location)

    def state(self) -> dict[str, Tensor]:
        """Return {name in the model's state dict: the tensor that holds the tuned values now}."""
        return self._values.state() | {name: bias for name, (_, bias) in self._new.items()}

    def live_values(self) -> Iterator[Tensor]:
        """Yield the tuned values, whether the adapter is on or off."""
        yield from self.state().values()

    def _located(self, found: Anatomy) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by block.

        One by one would be too much to ask: a key's bias gets no gradient at all, because softmax
        is blind to what is the same for all keys. And the last of a place comes first, since it is
        the first that starts at zero which has to move: keys never come last in a block.
        """
        if isinstance(self.config, FullConfig) and self.config.top_layers is None:
            return {"the model": list(reversed(self._values.own.values()))}
        where = {w.name: w.row if w.row in found.row_index else None for w in found.weights}
        for site in found.linear_sites:
            where.setdefault(f"{site.module}.bias", site.row)
        new = {name: bias for name, (_, bias) in self._new.items()}
        places: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in (self._values.own | new).items():
            places[_place(where[name])].insert(0, parameter)
        return dict(places)


def _place(row: Row | None) -> str:
    return "outside the blocks" if row is None else f"block {row.label}"


def _check_packed(model: nn.Module, sites: Iterable[Site]) -> None:
    for site in sites:
        if packed := packing(module_at(model, site.module)):  # GPTQ's and AWQ's are no parameters
            raise not_floating(site.module, packed)


def _check_new(layers: Mapping[str, nn.Module]) -> None:
    """Refuse a layer that a bias of floating-point numbers does not fit."""
    for path, layer in layers.items():
        if packed := packing(layer):
            raise not_floating(path, packed)
        if is_offloaded(layer):
            raise AdapterError(
                f"{path} is offloaded, so that it can get no bias; load it onto a device"
            )
        weight = cast(Tensor, layer.weight)
        if not weight.is_floating_point():  # a bias has the dtype of its layer's weight
            raise not_floating(path, str(weight.dtype))


def _zeros(layer: nn.Module) -> nn.Parameter:
    weight = cast(Tensor, layer.weight)
    width = cast(nn.Linear, layer).out_features
    return nn.Parameter(torch.zeros(width, dtype=weight.dtype, device=weight.device))


def _trained_sites(model: nn.Module, found: Anatomy, own: Iterable[nn.Parameter]) -> Iterator[str]:
    """Yield the names of the sites, embeddings and convolutions too, whose W₀ is trained."""
    trained = set(own)
    for site in found.by_name.values():
        if getattr(module_at(model, site.module), "weight", None) in trained:
            yield site.name
