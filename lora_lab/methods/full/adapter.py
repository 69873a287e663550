"""Methods that train the model's own parameters: FT, FT-TopN and BitFit.

Such an adapter owns a second set of values. While it is off, the model's parameters hold W₀ and the
adapter keeps the tuned values on the CPU; while it is on, it is the other way round. Switching
changes the contents, parameter by parameter, so that optimizers, ties, hooks and the names in the
state dict stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.blocks import Row
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Anatomy
from lora_lab.anatomy.wrappers import module_at, parameters_within
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.full.trained_weights import missing_biases, trained_weights


class FullAdapter(Adapter):
    """Tuned values of some of the model's own parameters, and new biases where BitFit makes them.

    They are trained in the model's dtype, without float32 masters: in bfloat16, updates below its
    precision are lost, and in float16 Adam's second moments underflow, so that a training ends in
    NaN. Buffers are no part of it; see `running_statistics`. Gradients go with the values, so those
    of one adapter are never added to another's.
    """

    modifies_base = True

    def __init__(self, model: nn.Module, config: FullConfig | BitFitConfig, name: str) -> None:
        self.name = name
        self.config = config
        self.method = config.method
        found = anatomy(model)
        weights = trained_weights(found, config)
        new = (
            missing_biases(found) if isinstance(config, BitFitConfig) and config.new_biases else ()
        )
        by_name = dict(parameters_within(model))
        self._own = {weight.name: by_name[weight.name] for weight in weights}
        _check(model, self._own, new)
        layers = {path: module_at(model, path) for path in new}
        self._on = False
        self._other = {p: _kept(p) for p in self._own.values()}
        self._gradients: dict[nn.Parameter, Tensor | None] = dict.fromkeys(self._other)
        self._new = {f"{path}.bias": (layer, _zeros(layer)) for path, layer in layers.items()}
        self._conflicts = [
            *self._own,
            *self._new,
            *_trained_sites(model, found, self._own.values()),
        ]
        self._by_location = self._located(found)

    def insert(self, active: Active) -> None:
        """Do nothing: the parameters are there already; see `set_active`."""

    def remove(self) -> None:
        """Do nothing: an adapter that is off has left nothing on the model."""

    def set_active(self, on: bool) -> None:
        """Change the values, gradients with them; new biases come and go.

        Needs the memory of one parameter, on the CPU.
        """
        if on == self._on:
            return
        with torch.no_grad():
            for parameter, other in self._other.items():
                before = parameter.detach().to(other.device, copy=True)
                parameter.copy_(other)
                other.copy_(before)
        for parameter, gradient in self._gradients.items():
            self._gradients[parameter] = parameter.grad
            # The model may have moved meanwhile.
            parameter.grad = None if gradient is None else gradient.to(parameter)
            parameter.requires_grad_(on)
        for layer, bias in self._new.values():
            if on:
                bias.data = bias.data.to(cast(Tensor, layer.weight))
            cast(Any, layer).bias = bias if on else None
        self._on = on

    def base_value(self, weight: nn.Parameter) -> Tensor | None:
        """Return W₀ of a parameter while the tuned values are in the model, else None."""
        if not self._on or weight not in self._other:
            return None
        return self._other[weight].to(weight)

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
        """Yield (parameter, tuned value); nothing is added, so nothing is rounded."""
        self.check_merge()
        for name, tuned in self.state().items():
            parameter = self._own[name]
            yield parameter, tuned.detach().to(dtype or parameter.dtype)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the model's own parameters, tied ones once, and the new biases.

        They hold the tuned values only while the adapter is on; `state` always tells.
        """
        yield from self._own.values()
        yield from (bias for _, bias in self._new.values())

    def parameters_by_location(self) -> dict[str, Sequence[nn.Parameter]]:
        """Return {"the model": …} for FT, else the parameters block by block."""
        return dict(self._by_location)

    def state(self) -> dict[str, Tensor]:
        """Return {name in the model's state dict: the tensor that holds the tuned values now}."""
        own = {name: p if self._on else self._other[p] for name, p in self._own.items()}
        return own | {name: bias for name, (_, bias) in self._new.items()}

    def snapshot(self) -> list[Tensor]:
        """Return copies of the tuned values on the CPU, whether the adapter is on or off."""
        return [tensor.detach().to("cpu", copy=True) for tensor in self.state().values()]

    def restore(self, values: Sequence[Tensor]) -> None:
        """Put back what `snapshot` returned, whether the adapter is on or off."""
        with torch.no_grad():
            for tensor, value in zip(self.state().values(), values, strict=True):
                tensor.copy_(value)

    def _located(self, found: Anatomy) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by block.

        One by one would be too much to ask: a key's bias gets no gradient at all, because softmax
        is blind to what is the same for all keys. And the last of a place comes first, since it is
        the first that starts at zero which has to move: keys never come last in a block.
        """
        if isinstance(self.config, FullConfig) and self.config.top_layers is None:
            return {"the model": list(reversed(self._own.values()))}
        where = {w.name: w.row if w.row in found.row_index else None for w in found.weights}
        for site in found.linear_sites:
            where.setdefault(f"{site.module}.bias", site.row)
        new = {name: bias for name, (_, bias) in self._new.items()}
        places: defaultdict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in (self._own | new).items():
            places[_place(where[name])].insert(0, parameter)
        return dict(places)


def _place(row: Row | None) -> str:
    return "outside the blocks" if row is None else f"block {row.label}"


def _check(model: nn.Module, own: Mapping[str, nn.Parameter], new: Iterable[str]) -> None:
    """Refuse what no gradient step can change, before anything is changed."""
    for name, parameter in own.items():
        path, _, leaf = name.rpartition(".")
        # bitsandbytes' weights are floating-point still until they are moved to their device.
        packed = leaf == "weight" and packing(module_at(model, path))
        if packed or not parameter.is_floating_point():
            raise _not_floating(name, packed if packed else str(parameter.dtype))
    for path in new:
        layer = module_at(model, path)
        weight = cast(Tensor, layer.weight)
        # A bias has the dtype of its layer's weight.
        if (packed := packing(layer)) or not weight.is_floating_point():
            raise _not_floating(path, packed if packed else str(weight.dtype))


def _not_floating(name: str, kind: str) -> AdapterError:
    return AdapterError(
        f"{name} holds {kind}, not floating-point weights; load the base unquantized"
    )


def _kept(parameter: nn.Parameter) -> Tensor:
    device = "meta" if parameter.is_meta else "cpu"
    return parameter.detach().to(device, copy=True)


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
