"""LoRA: ΔW = s·BA beside a frozen W₀ (Hu et al., 2022), and its variants with the same factors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.format import some
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Site
from lora_lab.errors import ConfigError
from lora_lab.methods.attached import merges_for_good, original_weight, refuse_lost_base
from lora_lab.methods.base import Active, Adapter
from lora_lab.methods.computed_weights import (
    check_layer,
    check_unshared,
    merged_layer,
    unmerged_weight,
)
from lora_lab.methods.lora import lora_bias
from lora_lab.methods.lora.activations import check_all_read, layer_inputs, with_ranks
from lora_lab.methods.lora.base_biases import trained_biases
from lora_lab.methods.lora.checks import check_site, each_weight_once
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.convolution import ConvSites
from lora_lab.methods.lora.dora import DoraConvSites, DoraSites
from lora_lab.methods.lora.embedding import (
    EmbeddingSite,
    EmbeddingSites,
    TiedHeadSites,
    check_embedding,
)
from lora_lab.methods.lora.experts import (
    ExpertsSite,
    ParameterSites,
    adapt_parameters,
    each_site,
    held_parameter,
)
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.layers import (
    LayerSites,
    adapt,
    owned_rows,
    readers_of_one_input,
    unadapt,
)
from lora_lab.methods.lora.own_forward import refuse_offloaded
from lora_lab.methods.lora.quantized import dequantized, plain_layer, stand_in
from lora_lab.methods.lora.read_past import read_past
from lora_lab.methods.lora.shared_input import SharedInput
from lora_lab.methods.lora.targets import TargetSpec, all_linear_notes, resolve_targets
from lora_lab.methods.lora.token_rows import TrainedTokens
from lora_lab.methods.modules_to_save import ModulesToSave, task_heads, tied_ends
from lora_lab.methods.offload import check_room, weight_keys
from lora_lab.methods.own_draws import OwnDraws
from lora_lab.methods.own_tensors import own_modules
from lora_lab.methods.own_values import OwnValues, check_in_place


class LoraAdapter(Adapter):
    """The LoRA factors of a model under one name.

    Attributes:
        name: the adapter's name.
        config: what it was made from.
        lora: the `LoraConfig` of its factors: `config` itself, or what AdaLoRA starts as.
        factors: {site name: what holds its parameters} in the anatomy's order.
        sites: {site name: `LoraSite`}: the same, and of experts that share a tensor each by itself.
        saved: the copies of modules that are trained whole.
        biases: the base's own that are trained with them (`LoraConfig.bias`).
    """

    method = "LoRA"
    per_sample = True
    config: Any
    factors: dict[str, LoraSite]
    sites: dict[str, LoraSite]

    def __init__(
        self,
        model: nn.Module,
        config: LoraConfig,
        name: str,
        batches: Iterable[Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.name = name
        self.config = self.lora = config
        self.model, self._merges = model, merges_for_good(model)
        found = anatomy(model)
        whole = (*(config.modules_to_save or ()), *task_heads(model, config.task_type))
        whole += tied_ends(found.tied, whole) if config.ensure_weight_tying else ()
        self.saved = ModulesToSave(model, whole)
        self.tokens = TrainedTokens(model, config.trainable_token_indices)
        # What is trained whole gets no factors, in PEFT neither.
        specs = [p for p in resolve_targets(found, config) if not self.saved.covers(p.site.module)]
        if not specs:
            raise ConfigError("every target lies within modules_to_save; name other target_modules")
        by_path = dict(own_modules(model, every_name=True))
        specs = each_weight_once(specs, by_path)
        self._check_tokens(specs)
        modules = {p.site.module: by_path[p.site.module] for p in specs}
        check_room(modules, by_path)
        readers = read_past(by_path, only=True)
        for p in specs:
            check_site(p.site, modules[p.site.module], config, readers)
        self._read = {layer for layer in read_past(by_path) if packing(layer) is None}
        lora_bias.check_readers(modules, self._read if config.lora_bias else ())
        for line in (*all_linear_notes(found, config), *self._undropped(modules)):
            warnings.warn(line, stacklevel=6)
        activations = self._activations(modules, specs, batches)
        if config.init.ranks:
            specs = with_ranks(specs, activations, config)
            modules = {p.site.module: by_path[p.site.module] for p in specs}
        self.factors, draws = {}, OwnDraws()
        for p in specs:
            W = self._start(modules[p.site.module], p.site)
            read = activations.get(p.site.input_group or p.site.module)
            with draws.of(p.site.name, p.r, hollow=W.is_meta, asks=config.init.asks):
                self.factors[p.site.name] = self.make_site(p, W, read)
        self._layers = dict(self._by_layer(modules))
        self.sites = {
            own.site.name: own for site in self.factors.values() for own in each_site(site)
        }
        self._together = [*readers_of_one_input(self._layers.values(), by_path)]
        self._shared: list[SharedInput] = []
        self._tied = _tied_layers(by_path, self._layers.values(), self.saved)
        if config.inference_mode:
            for parameter in [*self._own_parameters()]:
                parameter.requires_grad_(False)
        biases = trained_biases(model, config.bias, modules, self.saved)
        self.biases = OwnValues(biases, learns=not config.inference_mode)
        self.modifies_base = bool(biases)

    def _by_layer(
        self, modules: Mapping[str, nn.Module]
    ) -> Iterator[tuple[str, tuple[nn.Module, LayerSites]]]:
        by_path: dict[str, list[LoraSite]] = {path: [] for path in modules}
        for site in self.factors.values():
            by_path[site.site.module].append(site)
        for path, sites in by_path.items():
            yield path, (modules[path], _kind(self.config, sites[0].site)(sites))

    def _check_tokens(self, specs: Iterable[TargetSpec]) -> None:
        for path in [*self.saved.copies, *(p.site.module for p in specs)]:
            if self.tokens.covers(path):
                raise ConfigError(
                    f"{path} has trainable_token_indices, and the config names it elsewhere too; "
                    "leave it out of target_modules and modules_to_save"
                )

    def _undropped(self, modules: Mapping[str, nn.Module]) -> Iterator[str]:
        read = [path for path, module in modules.items() if module in self._read]
        if read and self.lora.lora_dropout:
            yield (
                f"lora_dropout does not act where other modules read a layer's weight: {some(read)}"
            )

    def make_site(self, planned: TargetSpec, W: Tensor, activations: Tensor | None) -> LoraSite:
        """Return the factors of one site at their start; see `LoraSite`."""
        return _SITES[planned.site.kind](planned, self.lora, W, activations)

    def insert(self, active: Active) -> None:
        """Add the factors below their layers; see `Adapter.insert`."""
        for layer, sites in (*self._layers.values(), *self._tied):
            if isinstance(sites, ParameterSites):
                adapt_parameters(layer, self.name, sites, active)
            else:
                adapt(layer, self.name, sites, active, layer in self._read)
        for holder, together in self._together:
            self._shared.append(SharedInput.around(holder))
            for sites in together:
                sites.share(self._shared[-1], together)
        self.saved.insert(self.name, active)
        self.tokens.insert(self.name, active)

    def remove(self) -> None:
        """Take the factors off their layers; see `Adapter.remove`."""
        for layer, _ in (*self._layers.values(), *self._tied):
            unadapt(layer, self.name)
        while self._shared:
            self._shared.pop().leave()
        self.saved.remove(self.name)
        self.tokens.remove(self.name)

    def set_active(self, on: bool) -> None:
        """Put the biases' own values into the base, or take them out; see `OwnValues`."""
        check_in_place(self.model, self.biases.own)
        self.biases.set_active(on)

    def base_value(self, weight: nn.Parameter) -> Tensor | None:
        """Return b of a bias that is trained, while the tuned one is in the model; else None."""
        return self.biases.base_value(weight)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what is trained: A (not with LoRA-FA), B and DoRA's magnitude; modules whole.

        Biases of the base hold the tuned values only while the adapter is on; `state` tells always.
        """
        yield from self._own_parameters()
        yield from self.biases.parameters()

    def live_values(self) -> Iterator[Tensor]:
        """Yield what `parameters` learn, whether the adapter is on or off."""
        yield from self._own_parameters()
        yield from self.biases.state().values()

    def _own_parameters(self) -> Iterator[nn.Parameter]:
        for site in self.factors.values():
            yield from (p for p in site.parameters() if p.requires_grad)
        whole = (*self.saved.parameters(), *self.tokens.parameters())
        yield from (p for p in whole if p.requires_grad)

    def parameters_by_location(self) -> dict[str, list[nn.Parameter]]:
        """Return {site name: what is trained of its factors}."""
        return {
            name: [p for p in site.parameters() if p.requires_grad]
            for name, site in self.factors.items()
        }

    def fast_parameters(self) -> Iterator[nn.Parameter]:
        """Yield B and DoRA's magnitude of every site but an embedding's."""
        for site in self.factors.values():
            if site.site.kind != "embedding":
                yield from (p for name, p in site.named_parameters() if name != "A")

    def state(self) -> dict[str, Tensor]:
        """Return the factors by "site.A", "site.B" and "site.magnitude", whole modules, biases."""
        factors = {
            f"{name}.{key}": parameter
            for name, site in self.factors.items()
            for key, parameter in site.named_parameters()
        }
        # Not as in the model's state dict: a site has a bias of B's (lora_bias).
        biases = {
            f"{name.removesuffix('bias')}base_layer.bias": bias
            for name, bias in self.biases.state().items()
        }
        return factors | dict(self.saved.state()) | dict(self.tokens.state()) | biases

    def conflicts(self) -> Iterator[str]:
        """Yield the sites and the tensors of whole modules; see `Adapter.conflicts`."""
        yield from self.factors
        yield from (key for key, _ in self.saved.state())
        yield from (f"{path}.weight" for path in self.tokens.rows)
        own = dict.fromkeys(f"{path}.bias" for path in lora_bias.biased(self._layers))
        yield from own | self.biases.own

    def merged_weights(
        self, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (weight, W₀ + ΔW), added in float32 and rounded once; one layer at a time."""
        for path, (layer, sites) in self._layers.items():
            if packing(layer) is None:
                if isinstance(sites, ParameterSites):
                    yield from sites.merged_parameters(layer, self._original, dtype)
                else:
                    yield from merged_layer(path, layer, self._original, sites.merged, dtype)
        yield from self.saved.merged_weights(dtype)
        yield from self.tokens.merged_weights(dtype)
        yield from self.biases.merged_weights(dtype)
        yield from lora_bias.merged_biases(self._layers, self._bias, dtype)

    def check_merge(self) -> None:
        """Raise for a layer whose weight cannot be written, or is not what it computes with."""
        held = {p for p, (_, own) in self._layers.items() if isinstance(own, ParameterSites)}
        layers = {path: own for path, own in self._layers.items() if path not in held}
        refuse_offloaded((path, layer) for path, (layer, _) in layers.items())
        self.saved.check_merge()
        lora_bias.check_merge(self._layers)
        plain = {p: layer for p, (layer, _) in layers.items() if packing(layer) is None}
        check_unshared(self.model, plain, [layer for layer, _ in self._tied])
        for path, (layer, sites) in layers.items():
            if path in plain:
                check_layer(path, layer, self._original, sites.merged)

    def quantized_layers(self) -> dict[str, Callable[[], nn.Module]]:
        """Return the makers of merged layers; see `Adapter.quantized_layers`."""
        return {
            path: functools.partial(self._dequantized_layer, path)
            for path, (layer, _) in self._layers.items()
            if packing(layer) is not None
        }

    def base_weight(self, site_name: str) -> Tensor:
        """Return the frozen W₀ of a site, (out, in), also while merged or from a fused matrix."""
        refuse_lost_base(self.model, self._merges)
        site = self.sites[site_name].site
        weight = self._weight(self._layers[site.module][0], site)
        return weight if site.number is None else weight[site.number]

    def _dequantized_layer(self, path: str) -> nn.Linear:
        layer, sites = self._layers[path]
        # The model's dtype, which its first floating-point weight has.
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        plain = plain_layer(layer, sites.merged(dequantized(path, layer)).to(dtype))
        if plain.bias is not None:
            plain.bias.data = self._bias(cast(nn.Parameter, layer.bias)).to(plain.bias)
        lora_bias.add_to(plain, sites)
        return plain

    def _activations(
        self,
        modules: Mapping[str, nn.Module],
        specs: Iterable[TargetSpec],
        batches: Iterable[Mapping[str, Tensor]] | None,
    ) -> dict[str, Tensor]:
        """Return the rows that are read, by the sites' input group; {} where nothing asks."""
        if not self.lora.needs_batches:
            return {}
        option = f"init_lora_weights={self.lora.init_lora_weights!r}"
        if batches is None:
            raise ConfigError(
                f"{option} starts from what the layers read; pass batches to attach, or train with "
                "it"
            )
        layers = {p.site.input_group or p.site.module: modules[p.site.module] for p in specs}
        found = layer_inputs(
            self.model, layers, batches, self.lora.init.sample, self.lora.ignored_label
        )
        check_all_read(found, {p.site.input_group or p.site.module: p for p in specs}, option)
        return found

    def _start(self, layer: nn.Module, site: Site) -> Tensor:
        """Return what a site's factors start from: W₀, or only its shape where it is packed."""
        return self._weight(layer, site) if packing(layer) is None else stand_in(layer, site)

    def _weight(self, layer: nn.Module, site: Site) -> Tensor:
        if site.kind in ("experts", "parameter"):
            weight = self._original(held_parameter(layer, site.parameter))
            return weight.mT if site.transposed else weight
        packed = packing(layer) is not None
        weight = (
            dequantized(site.module, layer) if packed else unmerged_weight(layer, self._original)
        )
        return owned_rows(weight, site).reshape(site.out_features, site.in_features)

    def _original(self, parameter: nn.Parameter) -> Tensor:
        return original_weight(self.model, parameter)

    def _bias(self, parameter: nn.Parameter) -> Tensor:
        """Return a layer's bias as this adapter has it, without B's."""
        tuned = self.biases.tuned(parameter)
        return self._original(parameter) if tuned is None else tuned.detach()


_SITES: dict[str, type[LoraSite]] = {
    "linear": LoraSite,
    "embedding": EmbeddingSite,
    "conv": LoraSite,
    "experts": cast(type[LoraSite], ExpertsSite),
    "parameter": LoraSite,
}
_LAYERS: dict[str, type[LayerSites]] = {
    "linear": LayerSites,
    "embedding": EmbeddingSites,
    "conv": ConvSites,
    "experts": ParameterSites,
    "parameter": ParameterSites,
}


def _kind(config: LoraConfig, site: Site) -> type[LayerSites]:
    if config.lora_bias:
        return lora_bias.BiasedSites
    kinds = {"conv": DoraConvSites, "linear": DoraSites} if config.use_dora else _LAYERS
    return kinds[site.kind]


def _tied_layers(
    by_path: Mapping[str, nn.Module],
    layers: Iterable[tuple[nn.Module, LayerSites]],
    saved: ModulesToSave,
) -> list[tuple[nn.Module, LayerSites]]:
    """Return the layers that share an adapted embedding's weight, with its factors.

    They are the output layer, and in T5 the embeddings of encoder and decoder; not what is trained
    whole, whose copy has a weight of its own.
    """
    found: dict[nn.Module, LayerSites] = {}
    key = weight_keys(by_path)
    for table, sites in layers:
        if not isinstance(sites, EmbeddingSites):
            continue
        for path, layer in by_path.items():
            if key(path) != key(sites.path) or layer is table or saved.covers(path):
                continue
            if isinstance(layer, nn.Embedding):
                check_embedding(path, layer)
                found[layer] = EmbeddingSites(sites.sites)
            else:
                found[layer] = TiedHeadSites(sites.sites)
    return list(found.items())
