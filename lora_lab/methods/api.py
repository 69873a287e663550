"""What is done with adapters on a model: attach, detach, merge, unmerge. Twice is no error."""

from __future__ import annotations

import contextlib
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lora_lab._util.format import a_kind
from lora_lab._util.hardware import hardware
from lora_lab._util.host_memory import HostRoom
from lora_lab._util.torch_modes import plain_modes
from lora_lab.anatomy.packed import forget_quantization
from lora_lab.anatomy.wrappers import is_deepspeed, module_at, unwrapped
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import (
    AttachedAdapters,
    attached_adapters,
    forget,
    remember,
    require_adapters,
    tell_of_adapters,
)
from lora_lab.methods.base import Adapter
from lora_lab.methods.combination import Combination
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.finite import check_finite, check_sum
from lora_lab.methods.lora.watch import Watch
from lora_lab.methods.registry import method_of
from lora_lab.methods.running_statistics import unchanged_statistics
from lora_lab.methods.standing import Standing, hooks_by_module, refuse_missing

_NAME = re.compile(r"[A-Za-z0-9_\-]+")


def attach(
    model: nn.Module,
    config: MethodConfig | Sequence[MethodConfig],
    name: str = "default",
    *,
    activate: bool = True,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
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
        batches: what the bare model is to read, its arguments on its device, where the config
            starts from data (`register_init`).

    Returns:
        The adapter; its parameters are float32 masters on the device of their layers, but for
        the methods that train the model's own parameters (FT, BitFit), of which `train` has some.

    Raises:
        ConfigError: the config does not fit the model, or two of a list train the same weight.
        AdapterError: an adapter is merged into the weights.
    """
    return put_on(model, build(model, config, name, batches), activate)


def put_on(model: nn.Module, adapter: Adapter, activate: bool) -> Adapter:
    """Put an adapter that was built for this model in place; see `attach`."""
    model = unwrapped(model)
    known, name = remember(model), adapter.name
    if activate or name in known.adapters:
        known.refuse_training()
    known.saving = known.saving or model.register_state_dict_pre_hook(tell_of_adapters)
    before = known.active.name
    if old := known.adapters.pop(name, None):
        warnings.warn(f"adapter {name!r} was attached already; it is replaced", stacklevel=3)
        if before == name:
            old.set_active(False)
        old.remove()
        known.active.name = None if before == name else before
        known.statistics.drop(name)
    hooks = hooks_by_module(model)
    try:
        adapter.insert(known.active)
        adapter.stands = Standing(model, adapter, hooks)
    except BaseException:  # Ctrl-C: no part of it stays, which would act beside the next one
        adapter.remove()
        if not known.adapters:
            forget(model)
        raise
    known.adapters[name] = adapter
    known.watch = known.watch or Watch()
    known.watch.begin(model)
    if activate or before == name:
        known.switch(name)
    return adapter


def build(
    model: nn.Module,
    config: MethodConfig | Sequence[MethodConfig],
    name: str,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
) -> Adapter:
    """Make the adapter of a config, or of a list of them, without putting it on the model.

    Raises:
        ConfigError, AdapterError: see `attach`.
    """
    if is_deepspeed(model):
        raise ConfigError(
            "DeepSpeed's engine has an optimizer already, which would not know the adapter; attach "
            "to the model itself, then call deepspeed.initialize"
        )
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{model!r} is no model; load it first, with load_model or transformers")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"adapter name {name!r} is not usable; use letters, digits, '-' and '_'")
    known = attached_adapters(model)
    if known:
        known.refuse_merged()
        if known.statistics:  # which are as they were after this
            known.refuse_training()
    config = as_config(config)
    data = [*batches] if batches is not None and config.needs_batches else None
    in_place = known.base_in_place() if known else contextlib.nullcontext()
    refuse_inference_tensors(model)
    for device in {parameter.device for parameter in model.parameters()}:
        hardware(device).load_linalg()  # initializations need it, and who looks at ΔW
    # What is made in inference mode could never be trained.
    with in_place, unchanged_statistics(model), plain_modes():
        parts = [
            method_of(part).build(model, part, name, *([data] if part.needs_batches else []))
            for part in config.parts
        ]
        return parts[0] if len(parts) == 1 else Combination(config, parts, name)


def refuse_inference_tensors(model: nn.Module) -> None:
    """Raise `ConfigError` for a model that was made within `torch.inference_mode`."""
    own = itertools.chain(model.named_parameters(), model.named_buffers())
    for name, tensor in own:
        if not is_lazy(tensor) and tensor.is_inference():
            raise ConfigError(
                f"{name} was made within torch.inference_mode(), so that nothing can be learned "
                "through it; make or load the model outside of that block"
            )


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take one adapter off, or all of them, and give W₀ back bit for bit, in any dtype.

    A merged adapter is unmerged first; where W₀ was not kept, the weights stay merged, and a
    warning says so. With the last adapter gone, the parameters' `requires_grad` is as it was before
    the first `attach`. Doing it twice is no error.
    """
    known = attached_adapters(model)
    if known is None:
        return
    if name is not None:
        known.find(name)
    if name is None or known.adapters[name].trains():
        known.refuse_training()
    if known.merged and known.originals is None and known.adapters.keys() <= {name or known.merged}:
        warnings.warn(
            f"adapter {known.merged!r} was merged with keep_original=False: the weights stay "
            "W₀ + ΔW, and are the base's from now on",
            stacklevel=2,
        )
        forget(model)
        return
    if known.merged and name in (None, known.merged):
        unmerge(model)
    if name in (None, known.active.name):
        known.switch(None)
    for gone in [name] if name else list(known.adapters):
        known.adapters.pop(gone).remove()
        known.statistics.drop(gone)
    if not known.adapters:
        forget(model)


def merge(
    model: nn.Module,
    name: str | None = None,
    keep_original: bool = True,
    *,
    dequantize: bool = False,
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
        dequantize: put floating-point layers, in the model's dtype, in the place of quantized
            ones; `unmerge` puts the quantized modules themselves back.
        dequantise: the name that it had at first.

    Raises:
        AdapterError: no such adapter, one that cannot merge, or a quantized layer and no
            `dequantize`. Nothing has changed then.
    """
    if dequantise:
        warnings.warn("dequantise is now called dequantize", DeprecationWarning, stacklevel=2)
        dequantize = True
    known = require_adapters(model)
    name = name or known.merged or known.active.name
    if name is None:
        raise AdapterError(f"no adapter is active; name one of {known.names}")
    adapter = known.find(name)
    if known.merged == name:
        return
    quantized = _checked(unwrapped(model), known, adapter, dequantize)
    merged_before = known.merged
    if merged_before:
        unmerge(model)
    before = known.active.name
    known.switch(None)
    known.statistics.become(name)
    try:
        with plain_modes(), torch.no_grad():
            layers = {path: make() for path, make in quantized.items()}
            for path, layer in layers.items():
                check_finite(name, {f"{path}.weight": cast(Tensor, layer.weight)})
            originals = _write_merged(model, adapter, keep_original)
    except BaseException:
        known.statistics.become(before)
        known.switch(before)
        if merged_before:
            merge(model, merged_before, dequantize=True)
        raise
    for other in known.adapters.values():
        other.remove()
    replaced = [(path, _replace(model, path, layer)) for path, layer in layers.items()]
    known.merged = name
    known.originals, known.quantized = (originals, replaced) if keep_original else (None, [])


def merge_and_unload(
    model: nn.Module, name: str | None = None, *, dequantize: bool = False
) -> nn.Module:
    """Fold an adapter into the weights for good and forget all adapters: a plain model again.

    It may be adapted anew: training in two stages, or ReLoRA's loop (Lialin et al., 2023). The
    weights' `requires_grad` is as it was before the first `attach`.

    Args:
        model: a model with an adapter.
        name: which adapter; the merged or active one by default. Others are dropped, with a
            warning.
        dequantize: as in `merge`; layers that were quantized are floating-point ones from then on.

    Returns:
        The model itself, PEFT's way.

    Raises:
        AdapterError: see `merge`. Nothing has changed then.
    """
    known = require_adapters(model)
    merge(model, name, keep_original=False, dequantize=dequantize)
    if others := [other for other in known.adapters if other != known.merged]:
        warnings.warn(
            f"merge_and_unload drops the other adapters too: {', '.join(map(repr, others))}; "
            "ll.save_adapter(model, folder, name) before it keeps one",
            stacklevel=2,
        )
    forget(model)
    forget_quantization(unwrapped(model))
    return model


def _checked(
    model: nn.Module, known: AttachedAdapters, adapter: Adapter, dequantize: bool
) -> dict[str, Callable[[], nn.Module]]:
    """Return the makers of layers in the place of quantized ones, or say why it cannot merge."""
    known.refuse_training()
    refuse_missing(model, adapter)
    adapter.check_merge()
    if warning := adapter.warning():
        warnings.warn(warning, stacklevel=3)
    quantized = adapter.quantized_layers()
    if quantized and not dequantize:
        raise AdapterError(
            f"{next(iter(quantized))} holds quantized weights, which no sum can be written into; "
            "merge(model, dequantize=True) puts floating-point layers in their place"
        )
    return quantized


def _write_merged(
    model: nn.Module, adapter: Adapter, keep: bool
) -> list[tuple[nn.Parameter, Tensor]]:
    """Write the merged weights and return W₀ of each on the CPU; put it back if that breaks off.

    Args:
        model: that the weights belong to.
        adapter: that is merged.
        keep: W₀; without it nothing is returned, and what is written stays: all of it is looked
            at once before.
    """
    originals: list[tuple[nn.Parameter, Tensor]] = []
    lost = False
    bare = unwrapped(model)
    own = itertools.chain(bare.named_parameters(), bare.named_buffers())
    names = {id(tensor): name for name, tensor in own}

    def check(weight: Tensor, merged: Tensor) -> None:
        if id(weight) not in names:
            raise AdapterError(
                f"{adapter.method} would write a {tuple(weight.shape)} into a tensor that the "
                "model does not hold, where it would be lost; keep the adapter beside the base"
            )
        check_sum(names[id(weight)], weight, merged)

    room = HostRoom("keeping W₀ for unmerge", "merge(model, keep_original=False) keeps nothing")
    try:
        if not keep:
            for weight, merged in adapter.merged_weights():
                check(weight, merged)
        for weight, merged in adapter.merged_weights():
            if keep:
                check(weight, merged)
                room.take([weight])
                originals.append((weight, weight.detach().to("cpu", copy=True)))
            lost |= not keep
            weight.copy_(merged)
            _read_back(names[id(weight)], weight, merged)
    except BaseException as error:
        _restore(originals)
        if lost:
            error.add_note(
                "The merge broke off half way and W₀ was not kept (keep_original=False): load the "
                "model again."
            )
        raise
    return originals


def _read_back(name: str, weight: Tensor, merged: Tensor) -> None:
    """Raise where a kind of tensor of another library's, quantized, holds what it was not given."""
    if type(weight) in (nn.Parameter, Tensor):
        return
    if not torch.allclose(weight.detach().to(merged), merged):
        raise AdapterError(
            f"{name} is {a_kind(weight)}, which does not hold the sum that is written "
            "into it; load the base unquantized to merge, or keep the adapter beside it"
        )


def unmerge(model: nn.Module) -> None:
    """Restore W₀ bit for bit and put the adapters back in place. Doing it twice is no error."""
    known = attached_adapters(model)
    if known is None or known.merged is None:
        return
    if known.originals is None:
        raise AdapterError(
            f"adapter {known.merged!r} was merged with keep_original=False; load the model again, "
            "or go on from the merged weights with merge_and_unload(model)"
        )
    _restore(known.originals)
    for path, layer in known.quantized:
        _replace(model, path, layer)
    for adapter in known.adapters.values():
        adapter.insert(known.active)
    name, known.merged, known.originals, known.quantized = known.merged, None, None, []
    known.switch(name)


def _restore(originals: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for weight, original in reversed(originals):
            weight.copy_(original)


def _replace(model: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """Put a layer in another's place, and return the other."""
    parent, _, leaf = path.rpartition(".")
    old = module_at(model, path)
    layer.train(old.training)
    setattr(module_at(model, parent), leaf, layer)
    return old
