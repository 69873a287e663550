"""What methods share that change, layer by layer, what is read or given back: IA3 and OFT.

ΔW of such a method has full rank, so it has no `sites`: what measures low-rank updates refuses it.
"""

from __future__ import annotations

import functools
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.dtypes import learned_dtype
from lora_lab._util.format import a_kind
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Anatomy, Site
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import original_weight
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.computed_weights import check_layer, check_unshared, merged_layer
from lora_lab.methods.cost import layer_claims
from lora_lab.methods.lora.layers import AdaptedLayer, adapt, unadapt
from lora_lab.methods.lora.own_forward import (
    PATCHED,
    base_forward,
    hold_weight,
    home,
    refuse_offloaded,
)
from lora_lab.methods.lora.quantized import dequantized, plain_layer
from lora_lab.methods.lora.read_past import read_past
from lora_lab.methods.modules_to_save import ModulesToSave, task_heads
from lora_lab.methods.offload import check_present, check_room
from lora_lab.methods.own_tensors import own_modules


class LayerUpdate(nn.Module):
    """What one adapter learns at one layer."""

    plain = False  # of a mixed batch every adapter's samples are computed apart

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site  # the layer's, or one of a fused matrix's
        self.path = site.module

    def output(self, x: Tensor, layer: AdaptedLayer) -> Tensor:
        """Return what the layer answers with, (..., out)."""
        if PATCHED in layer.__dict__:
            check_present(self, self.path)
        y = base_forward(layer, self.before(x))
        if not isinstance(y, Tensor):
            raise AdapterError(
                f"{self.site.module} returns {a_kind(y)}, not one tensor; leave it out of "
                "target_modules"
            )
        return self.after(y)

    def before(self, x: Tensor) -> Tensor:
        """Return what the layer reads in place of x (..., in)."""
        return x

    def after(self, y: Tensor) -> Tensor:
        """Return what stands in the place of the layer's own output y (..., out)."""
        return y

    @abstractmethod
    def merge_matrix(self, W: Tensor) -> None:
        """Change W₀ (out, in), in float32 or better, into the merged weight, in place."""

    def merge_bias(self, bias: Tensor) -> None:
        """Change the layer's bias (out,) likewise."""

    def merged(self, weight: Tensor) -> Tensor:
        """Return the merged weight as it is stored, in float32 or better."""
        merged = _precise_copy(weight)
        matrix = merged.flatten(1) if self.site.kind == "conv" else merged
        self.merge_matrix(matrix.T if self.site.transposed else matrix)
        return merged

    def merged_bias(self, bias: Tensor) -> Tensor:
        """Return the merged bias, in float32 or better."""
        merged = _precise_copy(bias)
        self.merge_bias(merged)
        return merged


class LayerAdapter(Adapter):
    """One adapter that has a `LayerUpdate` on each of its layers.

    Attributes:
        layers: {path: (layer, its update)}, in the anatomy's order.
        saved: the copies of modules that are trained whole.
    """

    per_sample = True
    key: str  # of what is learned, in PEFT's files and in `state`

    def __init__(self, model: nn.Module, config: Any, name: str) -> None:
        self.method, self.name, self.config, self.model = config.method, name, config, model
        heads = task_heads(model, config.task_type)
        self.saved = ModulesToSave(model, (*(config.modules_to_save or ()), *heads))
        found = anatomy(model)
        by_path = dict(own_modules(model, every_name=True))
        targets = {
            path: makes
            for path, makes in self.updates(found, by_path).items()
            if not self.saved.covers(path)  # what is trained whole gets nothing, as in PEFT
        }
        if not targets:
            raise ConfigError("every target lies within modules_to_save; name other target_modules")
        check_room(targets, by_path)
        readers = read_past(by_path, only=True)
        for path in targets:
            _check(path, by_path[path], readers)
        self.layers = {path: (by_path[path], make()) for path, make in targets.items()}
        self._conflicts = {
            *layer_claims(found, self.layers),
            *(key for key, _ in self.saved.state()),
        }
        for parameter in [*self.parameters()] if config.inference_mode else ():
            parameter.requires_grad_(False)

    @abstractmethod
    def updates(
        self, found: Anatomy, by_path: Mapping[str, nn.Module]
    ) -> dict[str, Callable[[], LayerUpdate]]:
        """Return {path of a target layer: what makes its update}.

        Raises:
            ConfigError: a target that the method cannot serve.
        """

    @abstractmethod
    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (place, parameter) of what the layers' updates learn."""

    @abstractmethod
    def peft_form(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return (settings of adapter_config.json, {module path: tensor}) as PEFT has them.

        None: PEFT has no form for it on these layers.
        """

    @abstractmethod
    def fill_from_peft(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy {module path: tensor} of PEFT's form into the adapter.

        Raises:
            AdapterError: the file is for another base; nothing has changed then.
        """

    def insert(self, active: Active) -> None:
        """Put the updates below their layers; see `Adapter.insert`."""
        for layer, update in self.layers.values():
            adapt(layer, self.name, cast(Any, update), active)
        self.saved.insert(self.name, active)

    def remove(self) -> None:
        """Take the updates off their layers; see `Adapter.remove`."""
        for layer, _ in self.layers.values():
            unadapt(layer, self.name)
        self.saved.remove(self.name)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the layers learn, then modules trained whole."""
        every = (*(parameter for _, parameter in self.learned()), *self.saved.parameters())
        yield from (parameter for parameter in every if parameter.requires_grad)

    def parameters_by_location(self) -> dict[str, Sequence[nn.Parameter]]:
        """Return {site or layer: what is learned there}."""
        return {place: [p for p in (own,) if p.requires_grad] for place, own in self.learned()}

    def state(self) -> dict[str, Tensor]:
        """Return what is learned by "place.key", and modules trained whole."""
        learned = {f"{place}.{self.key}": parameter for place, parameter in self.learned()}
        return learned | dict(self.saved.state())

    def conflicts(self) -> Iterator[str]:
        """Yield the layers' sites and biases, and the tensors of whole modules."""
        yield from self._conflicts

    def merged_weights(
        self, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (weight or bias, merged), computed in float32 and rounded once."""
        for path, (layer, update) in self.layers.items():
            if packing(layer) is not None:
                continue
            yield from merged_layer(path, layer, self._original, update.merged, dtype)
            if isinstance(bias := getattr(layer, "bias", None), nn.Parameter):
                yield bias, update.merged_bias(bias).to(dtype or bias.dtype)
        yield from self.saved.merged_weights(dtype)

    def check_merge(self) -> None:
        """Raise for a layer whose weight cannot be written, or is not what it computes with."""
        refuse_offloaded((path, layer) for path, (layer, _) in self.layers.items())
        self.saved.check_merge()
        plain = {p: layer for p, (layer, _) in self.layers.items() if packing(layer) is None}
        check_unshared(self.model, plain)
        for path, (layer, update) in self.layers.items():
            if path in plain:
                check_layer(path, layer, self._original, update.merged)

    def quantized_layers(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the makers of merged layers; see `Adapter.quantized_layers`."""
        return {
            path: functools.partial(self._dequantized_layer, path)
            for path, (layer, _) in self.layers.items()
            if packing(layer) is not None
        }

    def _original(self, parameter: nn.Parameter) -> Tensor:
        return original_weight(self.model, parameter)

    def _dequantized_layer(self, path: str) -> nn.Linear:
        layer, update = self.layers[path]
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        plain = plain_layer(layer, update.merged(dequantized(path, layer)).to(dtype))
        if plain.bias is not None:
            plain.bias.data = update.merged_bias(plain.bias).to(plain.bias.dtype)
        return plain


def master(layer: nn.Module, value: Tensor) -> nn.Parameter:
    """Return what a layer learns, in float32 or better on the layer's device, starting at this."""
    weight = hold_weight(layer)
    held = torch.float32 if weight is None else weight.dtype  # None: packed under another name
    return nn.Parameter(value.to(home(layer), learned_dtype(held)))


def note(method: str, lines: Sequence[str]) -> None:
    """Warn of what a config became on this model, the first of several as an example."""
    if lines:
        more = f" (and {len(lines) - 1} like it)" if lines[1:] else ""
        warnings.warn(f"{method}: {lines[0]}{more}", stacklevel=2)


def _precise_copy(tensor: Tensor) -> Tensor:
    precise = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(precise, copy=True, memory_format=torch.contiguous_format)


def _check(path: str, layer: nn.Module, readers: Mapping[nn.Module, str]) -> None:
    if reader := readers.get(layer):
        raise ConfigError(
            f"{reader} reads the weight of {path} itself, past its forward; leave it out of the "
            "target modules"
        )
    weight = hold_weight(layer)
    if packing(layer) is None and not (isinstance(weight, Tensor) and weight.is_floating_point()):
        kind = weight.dtype if isinstance(weight, Tensor) else "no tensor"
        raise AdapterError(f"{path} holds {kind}, not floating-point weights; load it unquantized")
