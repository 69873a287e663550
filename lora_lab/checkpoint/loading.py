"""An adapter read from its files onto a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lora_lab._util.files import user_path
from lora_lab._util.torch_modes import plain_modes
from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.children import without_wrappers
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.base_biases import fill_base_biases, take_base_biases
from lora_lab.checkpoint.files import CONFIG_FILE, StoredTensor, quoted
from lora_lab.checkpoint.full_modules import match_full_modules, match_statistics
from lora_lab.checkpoint.head_classes import check_classes, without_head
from lora_lab.checkpoint.locate import whole_folder
from lora_lab.checkpoint.lora_bias import fill_biases, take_biases
from lora_lab.checkpoint.native import STATISTICS, NativeFile
from lora_lab.checkpoint.peft import changed_base
from lora_lab.checkpoint.peft_methods import PeftMethodFile
from lora_lab.checkpoint.reader import read_adapter
from lora_lab.checkpoint.saving import tidy
from lora_lab.checkpoint.to_model import Matched, match
from lora_lab.checkpoint.token_rows import take_tokens
from lora_lab.errors import AdapterError
from lora_lab.methods.api import build, put_on
from lora_lab.methods.attached import activate as switch_to
from lora_lab.methods.attached import attached_adapters, require_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.combination import Combination
from lora_lab.methods.layer_update import LayerAdapter
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.peft_fields import HEADS, TaskType
from lora_lab.methods.lora.targets import full
from lora_lab.methods.own_draws import unread
from lora_lab.methods.own_tensors import own_modules


def load_adapter(
    model: nn.Module, folder: str | Path, name: str = "default", *, activate: bool = True
) -> Adapter:
    """Attach an adapter from a folder: LoRA, IA3 or OFT of PEFT's, or what `save_adapter` wrote.

    Names and shapes are compared with the model before anything is changed. Nothing is unpickled.
    The adapter acts only when all of it is there, so another thread may go on generating.

    Args:
        model: any model with the modules that the adapter names.
        folder: where the adapter's two files are, or a combination's folders.
        name: that the adapter gets.
        activate: False leaves in force what is.

    Raises:
        AdapterError: a file is missing, damaged or foreign, or the adapter is for another base.
    """
    model = unwrapped(model)
    if activate and (known := attached_adapters(model)) is not None:
        known.refuse_training()
    folder = whole_folder(user_path(folder, AdapterError))
    content = read_content(model, folder)
    check_classes(model, folder)
    with unread():
        adapter = build(model, content.config, name)
    with plain_modes():
        content.fill(adapter)
    put_on(model, adapter, activate=False)
    require_adapters(model).statistics.replace(name, content.statistics)
    if activate:
        switch_to(model, name)
    return adapter


@dataclass(frozen=True)
class Content:
    """What a folder holds: the config, and what fills in an adapter that was built from it."""

    config: Any
    fill: Callable[[Adapter], None]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)  # see `RunningStatistics`


def read_content(model: nn.Module, folder: Path, heads: tuple[str, ...] = ()) -> Content:
    """Read what a folder holds for a model, on which nothing is changed; see `load_adapter`.

    Args:
        model: the base.
        folder: the adapter's.
        heads: how the names of tensors begin that are left out, see `head_prefixes`.
    """
    modules = dict.fromkeys(path for path, _ in own_modules(model))
    file = read_adapter(folder, known=modules | anatomy(model).parameters_by_name)
    if heads:
        file = without_head(file, heads)
    if isinstance(file, AdapterFile):
        return _lora_content(model, file, folder)
    if isinstance(file, PeftMethodFile):
        return _method_content(model, file, folder)
    if not file.parts:
        return _native_content(model, file, folder, heads)
    contents = [read_content(model, part, heads) for part in file.parts]

    def fill_parts(combination: Adapter) -> None:
        for content, part in zip(contents, cast(Combination, combination).adapters, strict=True):
            content.fill(part)

    statistics = {key: tensor for content in contents for key, tensor in content.statistics.items()}
    return Content(tuple(content.config for content in contents), fill_parts, statistics)


def _native_content(
    model: nn.Module, file: NativeFile, folder: Path, heads: tuple[str, ...]
) -> Content:
    learned = {k: t for k, t in file.tensors.items() if not k.startswith(STATISTICS)}
    rest = {k.removeprefix(STATISTICS): t for k, t in file.tensors.items() if k not in learned}
    if asked := file.config.tokens:  # before so many are made
        for key, tensor in learned.items():
            if tensor.shape[:1] != (asked,):
                raise AdapterError(
                    f"{folder}: {quoted(key)} is {tensor.shape}, and the config says {asked:,} "
                    "tokens; fetch the adapter again"
                )
    statistics = match_statistics(rest, model)
    for name in sorted(rest.keys() - statistics.keys()):
        raise AdapterError(
            f"{folder} has running statistics of {quoted(name)}, and this model does not; load it "
            "onto the base it was made for"
        )

    def fill(adapter: Adapter) -> None:
        _fill_native(adapter, learned, folder, heads)

    return Content(file.config, fill, statistics)


def _method_content(model: nn.Module, file: PeftMethodFile, folder: Path) -> Content:
    by_path = dict(own_modules(model, every_name=True))
    modules = {site.module for site in anatomy(model).by_name.values()}
    for path in file.tensors:
        if path not in modules:
            what = "no layer that can be adapted" if path in by_path else "not in this model"
            raise AdapterError(
                f"the adapter is for another base: {quoted(path)} is {what}; load it onto the base "
                "it was made for"
            )
    rest = AdapterFile(file.settings, {}, weights=file.weights)
    whole = match_full_modules(rest, model, by_path)
    saved = {key: tensor for tensors in whole.values() for key, tensor in tensors.items()}

    def fill(built: Adapter) -> None:
        adapter = cast(LayerAdapter, built)
        for path in sorted(adapter.layers.keys() ^ file.tensors.keys()):
            what = "misses" if path in adapter.layers else "has, and this config does not name,"
            raise AdapterError(f"{folder} {what} {quoted(path)}; fetch the adapter again")
        adapter.fill_from_peft({path: t.torch() for path, t in file.tensors.items()})
        adapter.saved.fill(saved)

    config = file.config.replace(modules_to_save=tuple(whole) or None)
    return Content(config, fill, match_statistics(file.weights, model, whole))


def _fill_native(
    adapter: Adapter, stored: Mapping[str, StoredTensor], where: Path, heads: tuple[str, ...]
) -> None:
    """Copy a file's tensors into an adapter, if all of them fit; heads that were left out stay.

    Raises:
        AdapterError: the file is for another base.
    """
    live = {k: t for k, t in adapter.state().items() if not (heads and k.startswith(heads))}
    tensors = {without_wrappers(key): own.torch() for key, own in stored.items()}
    for name in sorted(live.keys() ^ tensors.keys()):
        what = "misses" if name in live else "has, and this model does not,"
        raise AdapterError(f"{where} {what} {quoted(name)}; load it onto the base it was made for")
    for name, tensor in live.items():
        if tensor.shape != tensors[name].shape or not tensors[name].is_floating_point():
            raise AdapterError(
                f"{where}: {name} is {tuple(tensors[name].shape)} and this model's is "
                f"{tuple(tensor.shape)}; load it onto the base it was made for"
            )
        if not torch.isfinite(tensors[name]).all():
            raise AdapterError(f"{where}: {name} holds NaN or infinite values; train it again")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])


def _lora_content(model: nn.Module, file: AdapterFile, folder: Path) -> Content:
    _refuse_what_cannot_be_attached(folder, file)
    file, rows, tokens = take_tokens(file, model)
    file, biases = take_biases(file)
    by_path = dict(own_modules(model, every_name=True))
    file, base_biases, which = take_base_biases(file, model, by_path)
    matched = match(file, model)
    if not (matched.updates or matched.experts):
        raise AdapterError(f"{folder} holds no LoRA factors that could be attached")

    def fill_factors(adapter: Adapter) -> None:
        with torch.no_grad():
            for path, update in matched.updates.items():
                adapter.sites[path].A.copy_(torch.from_numpy(update.A))
                adapter.sites[path].B.copy_(torch.from_numpy(update.B))
            for path, experts in matched.experts.items():
                own = cast(LoraAdapter, adapter).factors[path]
                for factor, values in (
                    (own.A, [update.A for update in experts]),
                    (own.B, [update.B for update in experts]),
                ):
                    factor.copy_(torch.from_numpy(np.stack(values)).view(factor.shape))
            for path, magnitude in matched.magnitudes.items():
                lengths = cast(nn.Parameter, adapter.sites[path].magnitude)
                lengths.copy_(torch.from_numpy(magnitude))
        saved = {key: t for tensors in matched.saved.values() for key, t in tensors.items()}
        cast(LoraAdapter, adapter).saved.fill(saved)
        cast(LoraAdapter, adapter).tokens.fill(rows)
        fill_biases(cast(LoraAdapter, adapter), biases)
        fill_base_biases(cast(LoraAdapter, adapter), base_biases)

    statistics = match_statistics(file.weights, model, matched.saved)
    config = _config(matched, file.settings).replace(
        trainable_token_indices=tokens, lora_bias=bool(biases), bias=which
    )
    return Content(config, fill_factors, statistics)


def _refuse_what_cannot_be_attached(folder: Path, file: AdapterFile) -> None:
    path = folder / CONFIG_FILE
    if init := changed_base(file.settings):
        raise AdapterError(
            f"{path}: {init} took a part out of the base's weights; convert the adapter with "
            "PEFT's save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )


def _config(matched: Matched, settings: Mapping[str, Any]) -> LoraConfig:
    """Return the config that gives every site its rank and scale."""
    # Of experts, which all have one rank, the first speaks for all.
    updates = matched.updates | {name: own[0] for name, own in matched.experts.items()}
    use_rslora = bool(settings.get("use_rslora"))
    ranks = {name: update.r for name, update in updates.items()}
    alphas = {
        name: update.scale * (update.r**0.5 if use_rslora else update.r)
        for name, update in updates.items()
    }
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return LoraConfig(
        r=r,
        lora_alpha=tidy(alpha),
        lora_dropout=_dropout(settings.get("lora_dropout")),
        target_modules=tuple(matched.updates),
        target_parameters=tuple(matched.experts),
        rank_pattern={full(n): v for n, v in ranks.items() if v != r},
        alpha_pattern={full(n): tidy(v) for n, v in alphas.items() if v != alpha},
        use_rslora=use_rslora,
        use_dora=bool(matched.magnitudes),
        modules_to_save=tuple(matched.saved) or None,
        task_type=_task(settings.get("task_type")),
    )


def _task(name: object) -> str | None:
    """Return the task that is written again; the heads of a classifier's are named already."""
    known = set(TaskType) - set(HEADS)
    return name if isinstance(name, str) and name in known else None


def _dropout(value: object) -> float:
    if value is None:
        return 0.0
    if type(value) not in (int, float) or not 0 <= cast(float, value) < 1:
        raise AdapterError(f"lora_dropout is {quoted(value)}; it must lie in [0, 1)")
    return cast(float, value)
