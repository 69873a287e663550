"""The verbs on a model, and the registry of methods behind them.

The verbs are idempotent. A model remembers its adapters in one `Rack`; which one is active is one
shared object that every adapted layer looks at, so switching costs the same with 2 or 200 loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.base import Active, Adapter

_NAME = re.compile(r"[A-Za-z0-9_\-]+")
_RACK = "_lora_lab"
_FOLDERS = ("adalora", "bottleneck", "full", "head", "lora", "prompt_tuning")


@dataclass
class Rack:
    """A model's adapters and what is needed to give its base back as it was."""

    active: Active = field(default_factory=Active)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    required_grad: list[tuple[nn.Parameter, bool]] = field(default_factory=list)
    merged: str | None = None
    originals: list[tuple[nn.Parameter, Tensor]] | None = None  # None: merged for good
    quantised: list[tuple[str, nn.Module]] = field(default_factory=list)  # taken out by `merge`
    saving: RemovableHandle | None = None  # tells of adapters when the model's state is taken


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
        config: a method's config, such as `LoraConfig`, or a list of them: a combination, such as
            the paper's LoRA+PE.
        name: letters, digits, "-" and "_".
        activate: False leaves in force what is: another thread may be generating with it.

    Returns:
        The adapter; its parameters are float32 masters on the device of their layers, but for
        the methods that train the model's own parameters (FT, BitFit).

    Raises:
        ConfigError: the config does not fit the model, or two of a list train the same weight.
        AdapterError: an adapter is merged into the weights.
    """
    return put_on(model, build(model, config, name), activate)


def put_on(model: nn.Module, adapter: Adapter, activate: bool) -> Adapter:
    """Put an adapter that was built for this model in place; see `attach`."""
    rack, name = _rack(model), adapter.name
    if rack is None:
        rack = Rack(required_grad=[(p, p.requires_grad) for p in model.parameters()])
        model.requires_grad_(False)
        rack.saving = model.register_state_dict_pre_hook(_tell_of_adapters)
        setattr(model, _RACK, rack)
    before = rack.active.name
    if old := rack.adapters.pop(name, None):
        warnings.warn(f"adapter {name!r} was attached already; it is replaced", stacklevel=3)
        if before == name:
            old.switch(False)
        old.remove()
        rack.active.name = None if before == name else before
    adapter.insert(rack.active)
    rack.adapters[name] = adapter
    if activate or before == name:
        _switch(rack, name)
    return adapter


def build(model: nn.Module, config: Any, name: str) -> Adapter:
    """Make the adapter of a config, or of a list of them, without putting it on the model.

    Raises:
        ConfigError, AdapterError: see `attach`.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"adapter name {name!r} is not usable; use letters, digits, '-' and '_'")
    rack = _rack(model)
    if rack and rack.merged:
        raise AdapterError(f"adapter {rack.merged!r} is merged; call unmerge(model) first")
    for module in ("combination", *(f"{m}.adapter" for m in _FOLDERS)):  # they register themselves
        importlib.import_module(f"lora_lab.methods.{module}")
    several = isinstance(config, Sequence) and not isinstance(config, (str, bytes))
    kind = tuple if several else type(config)
    if kind not in _METHODS:
        known = ", ".join(sorted(t.__name__ for t in _METHODS if t is not tuple))
        raise ConfigError(f"{type(config).__name__} is not an adapter's config; use one of {known}")
    with base_in_place(rack):
        return _METHODS[kind](model, config, name)


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
    if name in (None, rack.active.name):
        _switch(rack, None)
    for gone in [name] if name else list(rack.adapters):
        rack.adapters.pop(gone).remove()
    if not rack.adapters:
        for parameter, required in rack.required_grad:
            parameter.requires_grad_(required)
        if rack.saving is not None:
            rack.saving.remove()
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
        AdapterError: no such adapter, one that cannot merge, or a quantised layer and no
            `dequantise`. Nothing has changed then.
    """
    rack = needed_rack(model)
    name = name or rack.merged or rack.active.name
    if name is None:
        raise AdapterError(f"no adapter is active; name one of {_names(rack)}")
    adapter = _find(rack, name)
    if rack.merged == name:
        return
    adapter.check_merge()
    if doubt := adapter.doubt():
        warnings.warn(doubt, stacklevel=2)
    quantised = adapter.quantised_layers()
    if quantised and not dequantise:
        raise AdapterError(
            f"{next(iter(quantised))} holds quantised weights, which no sum can be written into; "
            "merge(model, dequantise=True) puts floating-point layers in their place"
        )
    merged_before = rack.merged
    if merged_before:
        unmerge(model)
    originals: list[tuple[nn.Parameter, Tensor]] = []
    lost = False
    before = rack.active.name
    _switch(rack, None)
    try:
        with torch.no_grad():
            replacements = {path: make() for path, make in quantised.items()}
            for weight, merged in adapter.merged_weights():
                if keep_original:
                    originals.append((weight, weight.detach().to("cpu", copy=True)))
                lost |= not keep_original
                weight.copy_(merged)
    except BaseException as error:
        _restore(originals)
        if lost:
            error.add_note(
                "The merge broke off half way and W₀ was not kept (keep_original=False): load the "
                "model again."
            )
        _switch(rack, before)
        if merged_before:
            merge(model, merged_before, dequantise=True)
        raise
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
    _restore(rack.originals)
    for path, layer in rack.quantised:
        _replace(model, path, layer)
    for adapter in rack.adapters.values():
        adapter.insert(rack.active)
    name, rack.merged, rack.originals, rack.quantised = rack.merged, None, None, []
    _switch(rack, name)


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
    _switch(rack, name)


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
    elif rack and (own := rack.adapters.get(rack.active.name or "")):
        original_ = own.original(weight)
        return weight.detach() if original_ is None else original_
    return weight.detach()


def base_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the base's own parameters in their order, without any adapter's."""
    rack = _rack(model)
    return [p for p, _ in rack.required_grad] if rack else list(model.parameters())


@contextlib.contextmanager
def base_in_place(rack: Rack | None) -> Iterator[None]:
    """Have W₀ in the model's parameters meanwhile, where an adapter works within them."""
    name = rack.active.name if rack else None
    if rack is None or name is None or not rack.adapters[name].within:
        yield
        return
    _switch(rack, None)
    try:
        yield
    finally:
        _switch(rack, name)


def _switch(rack: Rack, name: str | None) -> None:
    """Make an attached adapter the active one."""
    before = rack.active.name
    if before == name:
        return
    if before is not None:
        rack.adapters[before].switch(False)
    rack.active.name = name
    if name is not None:
        rack.adapters[name].switch(True)


def _tell_of_adapters(model: nn.Module, *_: Any) -> None:
    """Warn that the model's state is not its base's: `save_pretrained` asks for it too."""
    rack = _rack(model)
    if rack is None or rack.merged or not rack.adapters:
        return
    warnings.warn(
        f"the model's state dict, which save_pretrained writes, is not the base's: it holds "
        f"{', '.join(f'adapter {name!r} ({own.method})' for name, own in rack.adapters.items())}; "
        "ll.save_adapter(model, folder) writes an adapter, ll.export_merged(model, folder) a whole "
        "model",
        stacklevel=4,  # torch's two frames between
    )


def _restore(originals: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for weight, original in originals:
            weight.copy_(original)


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
