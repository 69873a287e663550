"""What every method shares: the Adapter protocol, the registry, and the verbs on a model.

The verbs are idempotent. A model remembers its adapters in one `Rack`; which one is active is one
shared object that every adapted layer looks at, so switching costs the same with 2 or 200 loaded.
"""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_lab.errors import AdapterError, ConfigError

_NAME = re.compile(r"[A-Za-z0-9_\-]+")
_RACK = "_lora_lab"


AdapterNames = tuple[str | None, ...]


@dataclass
class Active:
    """What is switched on.

    Attributes:
        name: of one adapter for all; None: the bare base model.
        samples: within `mixed_batch` one name a sample, in place of `name`.
    """

    name: str | None = None
    samples: AdapterNames | None = None


class Adapter(ABC):
    """One adapter on one model: what a method must be able to do."""

    method: ClassVar[str]  # the paper's name, such as "LoRA"
    name: str
    config: Any

    @abstractmethod
    def insert(self, active: Active) -> None:
        """Put the adapter's layers in place; the forward pass sees them while it is active."""

    @abstractmethod
    def remove(self) -> None:
        """Take the adapter's layers out again; the base weights are not touched."""

    @abstractmethod
    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable parameters."""

    @abstractmethod
    def merged_weights(
        self, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield (base weight, W₀ + ΔW) one by one, or raise if it cannot merge.

        Args:
            dtype: of the sum, after its one rounding; the weight's own by default.
        """

    def quantised_layers(self) -> dict[str, Callable[[], nn.Module]]:
        """Return what cannot be written into: {path: maker of the merged layer in floating point}.

        `merge` puts those layers in the place of the quantised ones, if it is asked to.
        """
        return {}

    @property
    def trainable(self) -> int:
        """The number of trainable parameters, counted."""
        return sum(p.numel() for p in self.parameters())


@dataclass
class Rack:
    """A model's adapters and what is needed to give its base back as it was."""

    active: Active = field(default_factory=Active)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    required_grad: list[tuple[nn.Parameter, bool]] = field(default_factory=list)
    merged: str | None = None
    originals: list[tuple[nn.Parameter, Tensor]] | None = None  # None: merged for good
    quantised: list[tuple[str, nn.Module]] = field(default_factory=list)  # taken out by `merge`


Builder = Callable[[nn.Module, Any, str], Adapter]
_METHODS: dict[type, Builder] = {}


def register(config_type: type) -> Callable[[Builder], Builder]:
    """Tell `attach` which builder serves a config class."""

    def keep(builder: Builder) -> Builder:
        _METHODS[config_type] = builder
        return builder

    return keep


def attach(
    model: nn.Module, config: Any, name: str = "default", *, activate: bool = True
) -> Adapter:
    """Put a new adapter on a model, freeze the base and activate the adapter.

    Nothing is changed unless everything fits. An adapter of the same name is replaced, with a
    warning, never nested.

    Args:
        model: any torch module that `anatomy` can read, usually a transformers model.
        config: a method's config, such as `LoraConfig`.
        name: letters, digits, "-" and "_".
        activate: False leaves in force what is: another thread may be generating with it.

    Returns:
        The adapter; its parameters are float32 masters on the device of their layers.

    Raises:
        ConfigError: the config does not fit the model.
        AdapterError: an adapter is merged into the weights.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"adapter name {name!r} is not usable; use letters, digits, '-' and '_'")
    if type(config) not in _METHODS:
        known = ", ".join(sorted(t.__name__ for t in _METHODS))
        raise ConfigError(f"{type(config).__name__} is not an adapter's config; use one of {known}")
    rack = _rack(model)
    if rack and rack.merged:
        raise AdapterError(f"adapter {rack.merged!r} is merged; call unmerge(model) first")
    adapter = _METHODS[type(config)](model, config, name)

    if rack is None:
        rack = Rack(required_grad=[(p, p.requires_grad) for p in model.parameters()])
        model.requires_grad_(False)
        setattr(model, _RACK, rack)
    if old := rack.adapters.pop(name, None):
        warnings.warn(f"adapter {name!r} was attached already; it is replaced", stacklevel=2)
        old.remove()
    adapter.insert(rack.active)
    rack.adapters[name] = adapter
    if activate:
        rack.active.name = name
    return adapter


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take one adapter off, or all of them, and give W₀ back bit for bit, in any dtype.

    A merged adapter is unmerged first. With the last adapter gone, the parameters' `requires_grad`
    is as it was before the first `attach`. Doing it twice is no error.
    """
    rack = _rack(model)
    if rack is None:
        return
    if name is not None and name not in rack.adapters:
        raise AdapterError(f"no adapter is called {name!r}; attached are {_names(rack)}")
    if rack.merged and name in (None, rack.merged):
        unmerge(model)
    for gone in [name] if name else list(rack.adapters):
        rack.adapters.pop(gone).remove()
    if rack.active.name not in rack.adapters:
        rack.active.name = None
    if not rack.adapters:
        for parameter, required in rack.required_grad:
            parameter.requires_grad_(required)
        delattr(model, _RACK)


def merge(
    model: nn.Module,
    name: str | None = None,
    keep_original: bool = True,
    *,
    dequantise: bool = False,
) -> None:
    """Fold an adapter into the weights: W = W₀ + ΔW, summed in float32 and rounded once.

    The model then is a plain model: its layers are the base's own, and inference costs what the
    base costs (section 4.1 of the paper: no additional latency).

    Args:
        model: a model with an adapter.
        name: which adapter; the active one by default. Another merged one is unmerged first.
        keep_original: keep W₀ on the CPU, so that `unmerge` restores it bit for bit. Without it
            there is no way back.
        dequantise: put floating-point layers, in the model's dtype, in the place of quantised
            ones; `unmerge` puts the quantised modules themselves back.

    Raises:
        AdapterError: no such adapter, or a quantised layer and no `dequantise`.
    """
    rack = needed_rack(model)
    name = name or rack.merged or rack.active.name
    if name is None:
        raise AdapterError(f"no adapter is active; name one of {_names(rack)}")
    adapter = _find(rack, name)
    if rack.merged == name:
        return
    quantised = adapter.quantised_layers()
    if quantised and not dequantise:
        raise AdapterError(
            f"{next(iter(quantised))} holds quantised weights, which no sum can be written into; "
            "merge(model, dequantise=True) puts floating-point layers in their place"
        )
    if rack.merged:
        unmerge(model)
    originals: list[tuple[nn.Parameter, Tensor]] = []
    with torch.no_grad():
        replacements = {path: make() for path, make in quantised.items()}
        for weight, merged in adapter.merged_weights():
            if keep_original:
                originals.append((weight, weight.detach().to("cpu", copy=True)))
            weight.copy_(merged)
    for other in rack.adapters.values():
        other.remove()
    replaced = [(path, _replace(model, path, layer)) for path, layer in replacements.items()]
    rack.merged = name
    rack.originals, rack.quantised = (originals, replaced) if keep_original else (None, [])


def unmerge(model: nn.Module) -> None:
    """Restore W₀ bit for bit and put the adapters back in place. Doing it twice is no error."""
    rack = _rack(model)
    if rack is None or rack.merged is None:
        return
    if rack.originals is None:
        raise AdapterError(
            f"adapter {rack.merged!r} was merged with keep_original=False; load the model again"
        )
    with torch.no_grad():
        for weight, original in rack.originals:
            weight.copy_(original)
    for path, layer in rack.quantised:
        _replace(model, path, layer)
    for adapter in rack.adapters.values():
        adapter.insert(rack.active)
    rack.active.name, rack.merged, rack.originals, rack.quantised = rack.merged, None, None, []


def activate(model: nn.Module, name: str | None) -> None:
    """Switch to an attached adapter, or with None to the bare base model."""
    rack = needed_rack(model) if name else _rack(model)
    if rack is None:
        return
    if rack.merged:
        if rack.merged == name:
            return
        raise AdapterError(f"adapter {rack.merged!r} is merged; call unmerge(model) first")
    if name is not None:
        _find(rack, name)
    rack.active.name = name


def active(model: nn.Module) -> str | None:
    """Return the name of the adapter in force, merged or active; None for the bare base."""
    rack = _rack(model)
    return (rack.merged or rack.active.name) if rack else None


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the model's adapters by name, in the order of attaching."""
    rack = _rack(model)
    return dict(rack.adapters) if rack else {}


def original_weight(model: nn.Module, weight: nn.Parameter) -> Tensor:
    """Return W₀ of a parameter, also while an adapter is merged into it."""
    rack = _rack(model)
    if rack and rack.merged:
        if rack.originals is None:
            raise AdapterError("W₀ was not kept (keep_original=False); load the model again")
        for kept, original in rack.originals:
            if kept is weight:
                return original.to(weight.device)
    return weight.detach()


def _replace(model: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Put a layer in another's place, and return the other."""
    parent, _, leaf = path.rpartition(".")
    old = model.get_submodule(path)
    layer.train(old.training)
    setattr(model.get_submodule(parent), leaf, layer)
    return old


def _rack(model: nn.Module) -> Rack | None:
    return getattr(model, _RACK, None)


def needed_rack(model: nn.Module) -> Rack:
    """Return what a model knows of its adapters, or say that it has none."""
    rack = _rack(model)
    if rack is None:
        raise AdapterError("the model has no adapter; call attach(model, config) first")
    return rack


def _find(rack: Rack, name: str) -> Adapter:
    if name not in rack.adapters:
        raise AdapterError(f"no adapter is called {name!r}; attached are {_names(rack)}")
    return rack.adapters[name]


def _names(rack: Rack) -> str:
    return ", ".join(map(repr, rack.adapters)) or "none"
