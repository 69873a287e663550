"""An adapter written in PEFT's format, for PEFT and for what reads PEFT's files.

Every module is named by its full, escaped path, so that no other reader can match too much. Where
PEFT's form is another one than ours:

- slices of a fused matrix are one module: A stacked, B block-diagonal, r and α scaled together;
- what PiSSA and OLoRA started from is counted off, [A; A₀] and [B, −B₀] of rank 2r at the same
  scale, so that the file belongs to the base as it was;
- a grouped convolution reads all channels with r rows of A a group, zero outside of its own;
- DoRA's magnitudes of rows that no slice owns are the lengths of these rows of W₀.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.files import disk_errors
from lora_lab._util.transformers_private import origin
from lora_lab._util.warn import warn
from lora_lab.anatomy.wrappers import modules_within, unwrapped
from lora_lab.checkpoint.adapter_file import SLICES_KEY, Slice, encode_slices, rows_of
from lora_lab.checkpoint.base_biases import base_bias_tensors
from lora_lab.checkpoint.checksum import CHECKSUM_KEY, adapter_checksum
from lora_lab.checkpoint.experts import held_factors, named_as_parameters
from lora_lab.checkpoint.files import (
    StoredTensor,
)
from lora_lab.checkpoint.head_classes import write_classes
from lora_lab.checkpoint.lora_bias import bias_tensors
from lora_lab.checkpoint.native import part_name, save_native, save_parts
from lora_lab.checkpoint.peft import PREFIX
from lora_lab.checkpoint.peft_folder import (
    running_statistics,
    save_method,
    task_type,
    whole_weights,
    write_folder,
)
from lora_lab.checkpoint.peft_reading import misread, ties_factors
from lora_lab.checkpoint.replacing import replace_adapter
from lora_lab.checkpoint.stacking import as_kernels, module_update
from lora_lab.checkpoint.tied_weights import tied_to
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import (
    active,
    attached,
    no_adapter,
    one_step,
    original_weight,
)
from lora_lab.methods.base import Adapter
from lora_lab.methods.combination import Combination
from lora_lab.methods.finite import check_finite
from lora_lab.methods.layer_update import LayerAdapter
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.dora import row_norms, zero_rows_warning
from lora_lab.methods.lora.factors import LoraSite
from lora_lab.methods.lora.own_forward import base_tensor
from lora_lab.methods.lora.targets import full
from lora_lab.methods.standing import missing
from lora_lab.methods.turns import turn


def save_adapter(model: nn.Module, folder: str | Path, name: str | None = None) -> Path:
    """Write an adapter: LoRA so that PEFT, and what reads PEFT's files, can load it.

    A method that PEFT has no form for gets LoRA Lab's own, and so do the parts of a combination,
    each in a folder of its own within; see `checkpoint.native`.

    Args:
        model: a model with an adapter; a run that trains it rests meanwhile between two steps.
        folder: made if missing; an adapter that it holds is replaced whole, and stays where the
            new one cannot be written. What else is in it is left alone.
        name: which adapter; the one in force by default.

    Returns:
        The folder.

    Raises:
        AdapterError: no such adapter, one that holds NaN or infinite values, or the disk does not
            take it.
    """
    folder = Path(folder)
    # Whether a run trains it is looked at once nobody else has the model, who may be starting one.
    with (
        turn(model),
        one_step(model, name),
        disk_errors(folder, AdapterError, "another folder"),
    ):
        replace_adapter(folder, lambda draft: write_adapter(model, draft, name))
    return folder


def write_adapter(model: nn.Module, folder: Path, name: str | None = None) -> None:
    """Write what `save_adapter` writes into an empty folder that its caller makes whole.

    Raises:
        AdapterError: see there.
        OSError, SafetensorError: the disk does not take it.
    """
    model = unwrapped(model)
    adapter = any_adapter(model, name)
    check_finite(adapter.name, adapter.state())
    check_finite(adapter.name, running_statistics(model, adapter))
    for line in (adapter.warning(), missing(model, adapter)):
        if line:
            warn(line)
    _save(model, adapter, folder)
    write_classes(model, adapter, folder)


def _save(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    if isinstance(adapter, LoraAdapter):
        _save_lora(model, adapter, folder)
    elif isinstance(adapter, Combination):
        names = [part_name(n, own) for n, own in enumerate(adapter.adapters, 1)]
        for own, part in zip(adapter.adapters, names, strict=True):
            _save(model, own, folder / part)
        save_parts(adapter.method, names, folder)
    elif isinstance(adapter, LayerAdapter) and (form := adapter.peft_form()) is not None:
        save_method(model, adapter, form, folder)
    else:
        save_native(adapter, folder, running_statistics(model, adapter))


def _save_lora(model: nn.Module, adapter: LoraAdapter, folder: Path) -> None:
    """Write a LoRA adapter in PEFT's format."""
    form = _Form()
    grouped: dict[str, list[LoraSite]] = {}
    held = [s for s in adapter.factors.values() if s.site.kind in ("experts", "parameter")]
    for site in adapter.factors.values():
        if (
            site.r and site not in held
        ):  # PEFT has no rank 0, which AdaLoRA leaves where it has cut everything
            grouped.setdefault(site.site.module, []).append(site)
    if not grouped and not held:
        raise AdapterError(
            f"adapter {adapter.name!r} has no triplets left at any matrix, so there is nothing to "
            "save; train it with a higher target_r"
        )
    by_path = dict(modules_within(model, every_name=True))
    if adapter.stands is not None:
        by_path |= adapter.stands.layers  # also those that were replaced
    for path, sites in grouped.items():
        _add_module(form, path, sites, by_path[path], adapter)
    _add_tied(form, adapter, by_path)
    for line in (zero_rows_warning(adapter.sites.values()), misread(model, grouped, by_path)):
        if line:
            warn(line)
    for own in held_factors(held, by_path):
        form.tensors |= own.tensors
        form.ranks[own.name], form.alphas[own.name] = own.r, own.alpha
        form.held.append(own.name)
    form.tensors |= bias_tensors(grouped)
    wrapped = Counter([*(path for path in form.ranks if path not in form.held), *form.tied])
    wrapped.update(site.site.module for site in held)
    targets = {site.site.module for site in adapter.factors.values()}
    form.tensors |= base_bias_tensors(adapter, wrapped, targets)
    weights = whole_weights(adapter, by_path)
    tensors = {PREFIX + key: tensor for key, tensor in (weights | form.tensors).items()}
    settings = _peft_config(model, adapter, form, weights)
    metadata = {"format": "pt", SLICES_KEY: encode_slices(form.slices)}
    stored = {key: StoredTensor.of(tensor) for key, tensor in tensors.items()}
    metadata[CHECKSUM_KEY] = adapter_checksum(stored, settings, metadata)
    write_folder(folder, tensors, settings, metadata)


@dataclass
class _Form:
    """The modules in PEFT's form; tensors by their names without PEFT's prefix."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    slices: dict[str, list[Slice]] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)  # parameters, not modules
    tied: dict[str, str] = field(default_factory=dict)  # {output layer: its adapted embedding}


def _add_module(
    form: _Form, path: str, sites: list[LoraSite], layer: nn.Module, adapter: LoraAdapter
) -> None:
    first = sites[0]
    A, B, *_ = module_update(sites, first.scale)
    doubled = 1 if first.initial is None else 2
    if first.site.rows is not None:
        form.slices[path] = [Slice(s.site.name, s.r * doubled, s.site.rows) for s in sites]
    names = "lora_A.weight", "lora_B.weight"
    if first.site.kind == "embedding":
        names = "lora_embedding_A", "lora_embedding_B"
    elif first.site.kind == "conv":
        A, B = as_kernels(A, B, layer)
    for name, factor in zip(names, (A, B), strict=True):
        # Contiguous, and nothing shared with the model or another tensor.
        form.tensors[f"{path}.{name}"] = factor.clone(memory_format=torch.contiguous_format)
    if adapter.lora.use_dora:
        lengths = _magnitudes(sites, layer, adapter)
        if first.site.kind == "conv":
            lengths = lengths.view(1, -1, *(1 for _ in A.shape[2:]))
        form.tensors[f"{path}.lora_magnitude_vector"] = lengths
    form.ranks[path] = A.shape[0]
    form.alphas[path] = _alpha(first, A.shape[0], adapter.lora)


def _add_tied(form: _Form, adapter: LoraAdapter, by_path: Mapping[str, nn.Module]) -> None:
    """Add what shares an adapted embedding's weight.

    An output layer is named only, where PEFT ties its factors (`ensure_weight_tying`). Where it
    does not (T5's several, BERT's names, SpeechT5's in another module) each is written out.
    """
    for site in adapter.sites.values():
        if site.site.kind != "embedding":
            continue
        path = site.site.module
        others = [p for p in tied_to(path, by_path) if not adapter.saved.covers(p)]
        if len(others) == 1 and ties_factors(adapter, path, others[0], by_path):
            form.tied[others[0]] = path
            continue
        A, B = (form.tensors[f"{path}.lora_embedding_{part}"] for part in "AB")
        for other in others:
            if isinstance(by_path[other], nn.Embedding):
                form.tensors[f"{other}.lora_embedding_A"] = A.clone()
                form.tensors[f"{other}.lora_embedding_B"] = B.clone()
            else:
                form.tensors[f"{other}.lora_A.weight"] = B.T.contiguous()
                form.tensors[f"{other}.lora_B.weight"] = A.T.contiguous()
            form.ranks[other], form.alphas[other] = form.ranks[path], form.alphas[path]


def _magnitudes(sites: list[LoraSite], layer: nn.Module, adapter: LoraAdapter) -> Tensor:
    """Return DoRA's m of a whole module, (out,)."""
    own = [cast(Tensor, site.magnitude).detach().cpu() for site in sites]
    if sites[0].site.rows is None:
        return own[0].clone()
    W = original_weight(adapter.model, cast(nn.Parameter, base_tensor(layer)))
    whole = row_norms(W.T if sites[0].site.transposed else W).to("cpu", own[0].dtype)
    for site, magnitude in zip(sites, own, strict=True):
        whole[rows_of(site.site.rows)] = magnitude
    return whole


def _alpha(site: LoraSite, r: int, config: LoraConfig) -> float:
    """Return the α that gives the site's scale at rank r."""
    if r == site.r:
        return site.alpha
    return site.scale * (r**0.5 if config.use_rslora else r)


def _peft_config(
    model: nn.Module, adapter: LoraAdapter, form: _Form, weights: Iterable[str]
) -> dict[str, Any]:
    config = adapter.lora
    sites = [own.site for own in adapter.factors.values()]
    r = Counter(form.ranks.values()).most_common(1)[0][0]
    alpha = Counter(form.alphas.values()).most_common(1)[0][0]
    base = getattr(model, "config", None)
    heads = [path for path in form.tied if path not in form.ranks]
    ranks, alphas = (  # PEFT looks a tied layer's up under its own name
        own | {path: own[table] for path, table in form.tied.items()}
        for own in (form.ranks, form.alphas)
    )
    modules = [path for path in form.ranks if path not in form.held]
    renamed = named_as_parameters(model, modules, config)
    keys = {path: f"{path}.weight" if path in renamed else path for path in ranks}
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": config.task_type or task_type(model, weights),
        "base_model_name_or_path": origin(base) or None,
        "revision": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": tidy(alpha),
        "lora_dropout": 0.0 if renamed else config.lora_dropout,
        "target_modules": [*(path for path in modules if path not in renamed), *heads],
        "bias": config.bias,
        "fan_in_fan_out": any(s.transposed and s.kind == "linear" for s in sites),
        "rank_pattern": {full(keys[p]): own for p, own in ranks.items() if own != r},
        "alpha_pattern": {full(keys[p]): tidy(own) for p, own in alphas.items() if own != alpha},
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "modules_to_save": list(adapter.saved.copies) or None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": True,
    }
    # PEFT warns of a field that its version does not know, so only where it is needed.
    if adapter.tokens.rows:
        tokens = {path: list(rows.tokens) for path, rows in adapter.tokens.rows.items()}
        settings["trainable_token_indices"] = tokens
    if config.lora_bias:
        settings["lora_bias"] = True
    if renamed or form.held:
        settings["target_parameters"] = [*(keys[path] for path in renamed), *form.held]
    return settings | ({"ensure_weight_tying": True} if heads else {})


def tidy(alpha: float) -> float | int:
    """Return α as people write it: 16, not 16.0."""
    return int(alpha) if float(alpha).is_integer() else alpha


def named_adapter(model: nn.Module, name: str | None) -> LoraAdapter:
    """Return a LoRA adapter by name; by default the one in force, else the first.

    Raises:
        AdapterError: no such adapter, or one that is not LoRA's.
    """
    adapter = any_adapter(model, name)
    if not isinstance(adapter, LoraAdapter):
        raise AdapterError(
            f"adapter {adapter.name!r} is {adapter.method}, and this form is LoRA's alone; "
            "use save_adapter"
        )
    return adapter


def any_adapter(model: nn.Module, name: str | None) -> Adapter:
    """Return an adapter by name; by default the one in force, else the first.

    Raises:
        AdapterError: no such adapter.
    """
    adapters = attached(model)
    name = name or active(model) or next(iter(adapters), None)
    if name is None or name not in adapters:
        known = ", ".join(adapters)
        raise (
            AdapterError(f"no adapter is called {name!r}; attached are {known}")
            if adapters
            else no_adapter(model)
        )
    return adapters[name]
