"""The merged model as a plain transformers folder, written layer by layer.

W₀ + ΔW is computed for one layer at a time and written to its place in its file, so that there
never are two models in memory, and the model at hand stays as it is. The names on disk are those of
transformers' own `save_pretrained`, which for some models are not those in memory (Mixtral's
experts).
"""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lora_lab._util.dtypes import dtype_name
from lora_lab._util.files import new_dir
from lora_lab._util.transformers_private import unsaved_keys
from lora_lab.anatomy.packed import packing
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.checkpoint.shards import Shard, ShardWriter, plan_shards
from lora_lab.errors import AdapterError
from lora_lab.methods.attached import one_step, require_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.finite import check_sum
from lora_lab.methods.own_tensors import own_tensors
from lora_lab.methods.standing import refuse_missing
from lora_lab.methods.turns import turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES = 5 * 10**9
INDEX_FILE = "model.safetensors.index.json"
_LAYER = re.compile(r".*?\.\d+\.")

Weights = dict[str, Tensor]


def export_merged(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write W₀ + ΔW as a transformers model that needs no adapter; the model at hand is unchanged.

    Args:
        model: a transformers model with an adapter, unquantized.
        folder: new or empty.
        name: which adapter; the merged or active one by default.
        dtype: of the written floating-point weights; each one's own by default. The sum is made in
            float32 and rounded once; weights that are merged already are written as they are.
        max_shard_bytes: of one file; a single larger tensor has a file of its own.
        tokenizer: written beside the model where given.

    Returns:
        The folder; ``AutoModelForCausalLM.from_pretrained(folder)`` and its like load it.

    Raises:
        AdapterError: no such adapter, one that cannot merge, another one is merged, a model that is
            quantized, has no weights or is none of transformers', or a folder that holds something.
    """
    with turn(model), one_step(model, name):
        return _export(unwrapped(model), Path(folder), name, dtype, max_shard_bytes, tokenizer)


def _export(
    model: nn.Module,
    folder: Path,
    name: str | None,
    dtype: torch.dtype | None,
    max_shard_bytes: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Path:
    _check(model, dtype, max_shard_bytes)
    adapter = _unmerged_adapter(model, name)
    if adapter is not None:
        refuse_missing(model, adapter)
        adapter.check_merge()
    known = require_adapters(model)
    learned = known.statistics.values(adapter.name) if adapter is not None else {}
    with known.base_in_place():
        weights = _own_weights(cast(Any, model))
        for key in learned.keys() & weights.keys():
            if not torch.equal(learned[key], weights[key].cpu()):
                weights[key] = learned[key]
        groups = _groups(weights)
        outline = _outline(model, weights, groups, dtype)
        shards = plan_shards(outline, max_shard_bytes)
        with new_dir(folder) as place, ShardWriter(place, shards) as writer:
            with torch.no_grad():
                for tensors in _merged_groups(adapter, weights, groups, dtype):
                    _write(writer, model, tensors)
            if len(shards) > 1:
                index = _index(shards, outline)
                (place / INDEX_FILE).write_text(
                    json.dumps(index, indent=2) + "\n", encoding="utf-8"
                )
            first = next(t.dtype for t in outline.values() if t.is_floating_point())
            _write_configs(cast(Any, model), place, first)
            if tokenizer is not None:
                tokenizer.save_pretrained(place)
    return folder


def _write(writer: ShardWriter, model: nn.Module, tensors: Weights) -> None:
    for key, tensor in _as_saved(model, tensors).items():
        if not writer.awaits(key, tensor):
            raise _not_by_layers(model)
        writer.write(key, tensor)
    tensors.clear()  # before the next layer is merged


def _check(model: nn.Module, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "save_pretrained"):
        raise AdapterError(
            f"{type(model).__name__} is no transformers model, so there is no format to write; "
            "call merge(model) and save its state dict"
        )
    packed = any(packing(module) is not None for module in model.modules())
    if packed or getattr(model, "hf_quantizer", None) is not None:
        raise AdapterError("the base is quantized; load it unquantized to write a merged model")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise AdapterError("some of the model's weights are not in memory; load it onto one device")
    if dtype is not None and not dtype.is_floating_point:
        raise AdapterError(f"dtype is {dtype}; use torch.float32, torch.bfloat16 or torch.float16")
    if max_shard_bytes < 1:
        raise AdapterError(f"max_shard_bytes is {max_shard_bytes}; use {SHARD_BYTES:,} or so")


def _unmerged_adapter(model: nn.Module, name: str | None) -> Adapter | None:
    """Return the adapter to be merged; None where it is in the weights already."""
    known = require_adapters(model)
    name = name or known.merged or known.active.name
    if name not in known.adapters:
        raise AdapterError(
            f"no adapter is called {name!r}; attached are {known.names}"
            if name
            else f"no adapter is active; name one of {known.names}"
        )
    if known.merged not in (None, name):
        raise AdapterError(f"adapter {known.merged!r} is merged; call unmerge(model) first")
    return None if known.merged else known.adapters[name]


def _own_weights(model: Any) -> Weights:
    """Return the model's own tensors by name, adapters left out, a tied one once."""
    ignored = unsaved_keys(model)
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = {key: tensor for key, tensor in own_tensors(model) if key not in ignored}
    names: dict[tuple[Any, ...], str] = {}
    # What is tied to another comes last, so that the name which transformers keeps is kept.
    for key in sorted(own, key=lambda key: key in tied):
        names.setdefault(_place(own[key]), key)
    return {key: own[key] for key in names.values()}


def _groups(weights: Weights) -> dict[str, list[str]]:
    """Return {group: names}: every layer, and what lies outside of the layers by its module."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in weights:
        layer = _LAYER.match(key)
        groups[layer[0] if layer else ".".join(key.split(".")[:-2])].append(key)
    return groups


def _as_saved(model: nn.Module, tensors: Weights) -> Weights:
    """Return tensors under the names, and in the shapes, that transformers saves them in."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(cast(Any, model), dict(tensors))


def _outline(
    model: nn.Module,
    weights: Weights,
    groups: Mapping[str, list[str]],
    dtype: torch.dtype | None,
) -> Weights:
    """Return what will be on disk, without the numbers.

    Raises:
        AdapterError: the groups one by one do not give what the model as a whole does.
    """
    empty = {key: _empty(tensor, dtype) for key, tensor in weights.items()}
    by_layer: Weights = {}
    for keys in groups.values():
        by_layer |= _as_saved(model, {key: empty[key] for key in keys})
    whole = _as_saved(model, empty)
    if {k: t.shape for k, t in whole.items()} != {k: t.shape for k, t in by_layer.items()}:
        raise _not_by_layers(model)
    return by_layer


def _not_by_layers(model: nn.Module) -> AdapterError:
    return AdapterError(
        f"{type(model).__name__} is not saved layer by layer; call merge(model), then "
        "model.save_pretrained(folder)"
    )


def _empty(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return torch.empty(tensor.shape, dtype=_written_dtype(tensor, dtype), device="meta")


def _written_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _merged_groups(
    adapter: Adapter | None,
    weights: Weights,
    groups: Mapping[str, list[str]],
    dtype: torch.dtype | None,
) -> Iterator[Weights]:
    """Yield every group's tensors as they are to be written, one group in memory at a time.

    Adapters give their weights layer by layer. Where one comes back to a group that was written
    before (an embedding, adapted last), its new tensors alone are yielded.
    """
    group_of = {key: group for group, keys in groups.items() for key in keys}
    key_of = {_place(tensor): key for key, tensor in weights.items()}
    written: set[str] = set()

    def converted(key: str) -> Tensor:
        own = weights[key].detach()
        check_sum(key, own, as_written := own.to(_written_dtype(own, dtype)))
        return as_written

    def whole(group: str, merged: Weights) -> Weights:
        if group in written:
            return merged
        written.add(group)
        return {key: converted(key) for key in groups[group] if key not in merged} | merged

    current, merged = "", Weights()
    for weight, sum_ in adapter.merged_weights(dtype) if adapter else ():
        key = key_of.get(_place(weight))
        if key is None:
            raise AdapterError(
                f"the adapter changes a {tuple(weight.shape)} that this model does not save; "
                "call merge(model) and save its state dict"
            )
        if merged and group_of[key] != current:
            yield whole(current, merged)
            merged = Weights()
        current = group_of[key]
        check_sum(key, weights[key], sum_)
        merged[key] = sum_
    if merged:
        yield whole(current, merged)
    for group in groups:
        if group not in written:
            yield whole(group, Weights())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two names of one tensor have in common."""
    if not tensor.numel():
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _index(shards: Sequence[Shard], outline: Weights) -> dict[str, Any]:
    return {
        "metadata": {
            "total_parameters": sum(tensor.numel() for tensor in outline.values()),
            "total_size": sum(tensor.nbytes for tensor in outline.values()),
        },
        "weight_map": {key: shard.file for shard in shards for key in shard.tensors},
    }


def _write_configs(model: Any, folder: Path, dtype: torch.dtype) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype_name(dtype)
    config.save_pretrained(folder)
    if model.can_generate():
        # Not its save_pretrained: that refuses settings which models on the hub really have.
        model.generation_config.to_json_file(folder / "generation_config.json")
