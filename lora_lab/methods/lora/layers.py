"""Layers while adapters stand below them: what a forward pass adds, and what merging would write.

A layer's class is swapped for a subclass (`AdaptedLayer`) whose forward asks the active adapter's
`LayerSites` for the output. So names in the state dict, tied weights and hooks stay as they are,
nothing ever nests, and taking the adapter off is swapping the class back.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.class_swap import with_mixin
from lora_lab._util.format import a_kind
from lora_lab._util.torch_private import children_of, parameters_of
from lora_lab.anatomy.children import ADAPTER_CHILD
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.types import Site
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Active
from lora_lab.methods.lora.mixed_batch import mixed_output
from lora_lab.methods.lora.operator import (
    add_terms,
    following_linear,
    lowrank_linear,
    needs_plain_path,
)
from lora_lab.methods.lora.own_forward import (
    PATCHED,
    base_forward,
    hold_weight,
    instance_forward,
    runs_itself,
)
from lora_lab.methods.lora.shared_input import SharedInput
from lora_lab.methods.offload import check_present
from lora_lab.methods.own_modes import class_of, set_class
from lora_lab.spectra.update import LowRankUpdate

if TYPE_CHECKING:
    from lora_lab.methods.lora.factors import LoraSite


class AdaptedLayer:
    """Mixed into a layer's class while adapters stand below it."""

    base_class: type[nn.Module]
    transposed: bool  # the weight is stored (in, out), as transformers' Conv1D does
    plain_product: bool  # the base's forward is the product that the operator does in one go
    is_read: bool = False  # other modules compute with its weight; see `ReadLayer`
    weight: nn.Parameter
    bias: nn.Parameter | None
    lora: nn.ModuleDict  # {adapter name: its sites on this layer}
    _active: Active

    def forward(self, x: Tensor) -> Tensor:
        """Return the base layer's output plus the active adapter's update."""
        if PATCHED in self.__dict__ and runs_itself(cast(nn.Module, self)):
            return cast(Tensor, self.base_class.forward(cast(Any, self), x))
        # Another thread may take the last adapter off meanwhile: then both are gone, and the class
        # is the base's again.
        active: Active | None = getattr(self, "_active", None)
        lora = children_of(cast(nn.Module, self)).get(ADAPTER_CHILD)
        if active is not None and lora is not None:
            sites = children_of(lora)
            if (names := active.samples) is not None:
                if any(name in sites for name in names):
                    return mixed_output(x, self, active)
            elif (own := sites.get(cast(str, active.name))) is not None:
                return cast(LayerSites, own).output(x, self)
        if getattr(self, "base_class", None) is None:
            return cast(Tensor, cast(Any, type(self)).forward(self, x))
        return base_forward(self, x)

    def __setattr__(self, name: str, value: Any) -> None:
        # Hooks that are put on or taken off meanwhile: a `forward` on the instance would hide ours.
        if name != "forward":
            super().__setattr__(name, value)
        elif _is_own(self, value):
            self.__dict__.pop(PATCHED, None)
        else:
            self.__dict__[PATCHED] = value

    def __delattr__(self, name: str) -> None:
        if name == "forward" and PATCHED in self.__dict__:
            del self.__dict__[PATCHED]
        else:
            super().__delattr__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be pickled by the base's class: the adapted one has no module to be imported from."""
        make, (_, *args), *state = cast(Any, super().__reduce_ex__(max(2, protocol)))
        if make.__name__ != "__newobj__":  # the base's own way
            return super().__reduce_ex__(protocol)
        return _new_adapted, (self.base_class, self.is_read, *args), *state


own_forwards: list[Callable[..., Tensor]] = [AdaptedLayer.forward]  # and `watch`'s


class ReadLayer(AdaptedLayer):
    """A layer whose weight other modules read: what they get is W₀ + ΔW, built in full."""

    is_read = True

    @property  # type: ignore[override]
    def weight(self) -> Tensor:
        """W₀ with the active adapter's update; W₀ alone within the layer's own forward."""
        weight = stored_weight(cast(Any, self))
        if runs_itself(cast(nn.Module, self)):
            return weight
        sites = children_of(self.lora).get(cast(str, self._one_adapter()))
        if sites is None:
            return weight
        return cast(LayerSites, sites).effective(weight).to(weight.dtype)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        self.__dict__["weight"] = value

    def _one_adapter(self) -> str | None:
        names = self._active.samples
        if names is None:
            return self._active.name
        held = {name if name in children_of(self.lora) else None for name in names}
        if len(held) > 1:
            path = cast(LayerSites, next(iter(self.lora.values()))).path
            raise AdapterError(
                f"the weight of {path} is read by another module, so that samples of one batch "
                "cannot have different adapters there; run them apart"
            )
        return held.pop() if held else None


def stored_weight(layer: AdaptedLayer) -> Tensor:
    """Return W₀ where the layer's class has a `weight` of its own making."""
    weight: Tensor | None = parameters_of(cast(nn.Module, layer)).get("weight")
    if weight is None:  # older weight normalization keeps it here, parametrizations make it
        weight = layer.__dict__.get("weight")
    return cast(Any, layer.base_class).weight.fget(layer) if weight is None else weight


def adapt(
    layer: nn.Module, name: str, sites: LayerSites, active: Active, is_read: bool = False
) -> None:
    """Add an adapter's sites below a layer; see `ReadLayer` for `is_read`."""
    adapted = cast(AdaptedLayer, layer)
    sites.train(layer.training)
    if not isinstance(layer, AdaptedLayer):
        # The class last: another thread may be in the midst of a forward pass.
        adapted.lora, adapted._active = nn.ModuleDict(), active
        patched = layer.__dict__.get("forward")
        if patched is not None and not _is_own(layer, patched):
            layer.__dict__[PATCHED] = patched
        if packing(layer) is not None:
            layer.__dict__["plain_product"] = False  # torchao's weights stand in a plain Linear
        set_class(layer, _adapted_class(class_of(layer), is_read))
        layer.__dict__.pop("forward", None)
    # Not lora[name]: adapters may be called "keys" or "update".
    children_of(adapted.lora)[name] = sites


def unadapt(layer: nn.Module, name: str) -> None:
    """Take an adapter's sites off a layer; with the last ones gone its class is the base's."""
    if not isinstance(layer, AdaptedLayer):
        return
    children_of(layer.lora).pop(name, None)
    if not layer.lora:
        if PATCHED in layer.__dict__:
            layer.__dict__["forward"] = layer.__dict__[PATCHED]
        set_class(layer, layer.base_class)
        layer.__dict__.pop(PATCHED, None)
        layer.__dict__.pop("plain_product", None)
        del layer.lora, layer._active


def _is_own(layer: Any, forward: Any) -> bool:
    """Whether a `forward` on an instance is its class's, as accelerate leaves it behind."""
    bound = getattr(forward, "__self__", None) is layer
    own = *own_forwards, type(layer).forward, base_class(layer).forward
    return bound and forward.__func__ in own


class LayerSites(nn.ModuleList):
    """One adapter's sites on one layer: whole, or slices of a fused matrix."""

    plain = True  # the update is a sum of products, and nothing else

    def __init__(self, sites: Iterable[LoraSite]) -> None:
        super().__init__(sites)
        self.path = self.sites[0].site.module
        # Plain attributes: the other layers' factors are no part of this one.
        self._shared: SharedInput | None = None
        self._readers: Callable[[], Sequence[LayerSites]] = tuple

    @property
    def sites(self) -> list[LoraSite]:
        """The sites, in the order of the layer's rows."""
        return [cast("LoraSite", site) for site in self]

    def share(self, shared: SharedInput, together: Sequence[LayerSites]) -> None:
        """Share one pass through A with the layers that read the same input."""
        self._shared, self._readers = shared, functools.partial(tuple, together)

    @property
    def active_dropout(self) -> float:
        """The probability on the way into A; 0 outside training."""
        site = self.sites[0]
        return site.dropout if site.training else 0.0

    def terms(self) -> list[LowRankUpdate]:
        """Return every site's update as the operator takes it."""
        return [term for site in self.sites for term in site.update.terms()]

    def output(self, x: Tensor, layer: AdaptedLayer) -> Tensor:
        """Return the layer's output with every site's update, (..., out)."""
        if PATCHED in layer.__dict__ or not layer.plain_product:
            check_present(self, self.path)
            return self.added(base_forward(layer, x), x, layer)
        return self.product(x, layer, layer.bias)

    def added(self, y: Tensor, x: Tensor, layer: AdaptedLayer) -> Tensor:  # noqa: ARG002
        """Return the base's output y with every site's update, (..., out)."""
        if not isinstance(y, Tensor):
            raise AdapterError(
                f"{self.path} returns {a_kind(y)}, not one tensor that an update can "
                "be added to; leave it out of target_modules"
            )
        return add_terms(y, x, self.terms(), self.active_dropout)

    def product(self, x: Tensor, layer: AdaptedLayer, bias: Tensor | None) -> Tensor:
        """Return W₀x + bias + every update, by the operator."""
        terms, dropout = self.terms(), self.active_dropout
        weight = hold_weight(cast(Any, layer)) if layer.is_read else layer.weight
        assert weight is not None
        shared = self._shared
        if shared is None or needs_plain_path(x, weight, bias) or x.is_inference():
            return lowrank_linear(x, weight, bias, terms, layer.transposed, dropout)
        hidden = shared.take(x, self.path, terms, dropout)
        if hidden is not None:
            return following_linear(x, hidden, weight, bias, terms, layer.transposed)
        others = {reader.path: reader.terms() for reader in self._readers() if reader is not self}
        return shared.lead(x, weight, bias, terms, others, layer.transposed, dropout)

    def merged(self, weight: Tensor) -> Tensor:
        """Return W₀ with every site's ΔW added, in float32 (float64 for a float64 weight)."""
        with torch.no_grad():
            return self.effective(weight)

    def effective(self, weight: Tensor) -> Tensor:
        """Return `merged` with the graph to the factors: for who computes with the weight."""
        precise = torch.promote_types(weight.dtype, torch.float32)
        # Contiguous, also for a channels-last kernel: its rows must be views to add to.
        whole = weight.detach().to(precise, copy=True, memory_format=torch.contiguous_format)
        with torch.autocast(weight.device.type, enabled=False):
            for site in self.sites:
                own = owned_rows(whole, site.site)
                own.add_(site.delta().view(own.shape))
        return whole


def readers_of_one_input(
    layers: Iterable[tuple[nn.Module, LayerSites]], modules: Mapping[str, nn.Module]
) -> Iterator[tuple[nn.Module, list[LayerSites]]]:
    """Yield the layers of one block that read the same tensor, and the module that calls them all.

    Within a block only: what leaves a block does not go through gradient checkpointing unharmed.

    Args:
        layers: the adapter's.
        modules: {path: module} of the whole model.
    """
    readers: defaultdict[tuple[str, str, int | None], list[LayerSites]] = defaultdict(list)
    for layer, sites in layers:
        site = sites.sites[0].site
        if (
            instance_forward(layer) is None
            and _adapted_class(cast(Any, base_class(layer))).plain_product
            and packing(layer) is None
        ):
            readers[site.input_group, site.stack, site.layer].append(sites)
    for together in readers.values():
        if len(together) > 1:
            names = zip(*(sites.path.split(".") for sites in together), strict=False)
            above = [own[0] for own in itertools.takewhile(lambda own: len({*own}) == 1, names)]
            paths = (".".join(above[:depth]) for depth in range(len(above), -1, -1))
            found = (modules[path] for path in paths if path in modules)
            # Lists have no forward.
            holder = next(
                (m for m in found if not isinstance(m, nn.ModuleList | nn.ModuleDict)), None
            )
            if holder is not None:
                yield holder, together


def base_class(layer: nn.Module) -> type[nn.Module]:
    """Return the class that a layer has without adapters."""
    kind: type[nn.Module] = class_of(layer)
    return layer.base_class if isinstance(layer, AdaptedLayer) else kind


@functools.cache
def _adapted_class(base: Any, is_read: bool = False) -> Any:
    """Return the subclass of a layer's class that adds the active adapter's update."""
    transposed = base.__name__ == "Conv1D"  # transformers'; that need not be imported here
    members: dict[str, Any] = {
        "base_class": base,
        "transposed": transposed,
        "plain_product": transposed or base.forward is nn.Linear.forward,
        "__module__": base.__module__,
    }
    kind = ReadLayer if is_read else AdaptedLayer
    return with_mixin(kind, base, f"Adapted{base.__name__}", members)


def _new_adapted(base: type[nn.Module], is_read: bool, *args: Any) -> nn.Module:
    """Return an adapted layer that has no state yet."""
    adapted: type[nn.Module] = _adapted_class(cast(Any, base), is_read)
    return adapted.__new__(adapted, *args)


def owned_rows(weight: Tensor, site: Site) -> Tensor:
    """Return the site's matrix as a view of a stored weight: (out, in) or (groups, width, in)."""
    if site.kind == "conv":
        return weight.flatten(1)
    matrix = weight.T if site.transposed or site.kind == "embedding" else weight
    if site.rows is None:
        return matrix
    rows = site.rows
    return matrix.unflatten(0, (rows.groups, rows.group_size)).narrow(1, rows.offset, rows.width)
