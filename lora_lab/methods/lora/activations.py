"""What a model's layers read, for initializations that start from data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.format import a_kind
from lora_lab.errors import ConfigError
from lora_lab.methods.attached import bare
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import TargetSpec


def layer_inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Tensor]],
    sample: Callable[[Tensor], Tensor] | None = None,
    ignored_label: int | None = None,
) -> dict[str, Tensor]:
    """Return the rows that each layer reads, (tokens, in) in float32, pads left out.

    The bare base model reads the batches in eval mode, without gradients.

    Args:
        model: read once a batch.
        layers: {name: a layer below it}, called with (batch, length, in).
        batches: the model's arguments, on its device.
        sample: what is made of each sample's rows before they are put together.
        ignored_label: tokens that have it in the batch's labels are left out too.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    mask: Tensor | None = None

    def keep(name: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        masked = mask is not None and mask.shape == x.shape[:2]
        if sample is None or x.ndim < 3:
            found[name].append((x[mask] if masked else x.flatten(0, -2)).float())
            return
        for number, own in enumerate(x):
            rows = own[mask[number]] if masked and mask is not None else own.flatten(0, -2)
            if len(rows):
                found[name].append(sample(rows.float()))

    training = [part for part in model.modules() if part.training]
    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    model.eval()
    try:
        with torch.no_grad(), bare(model):
            for batch in batches:
                if not isinstance(batch, Mapping):
                    raise ConfigError(
                        f"batches holds {a_kind(batch)}; each must be a mapping of what "
                        'the model takes, such as {"input_ids": …}'
                    )
                mask = _read(batch, ignored_label)
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
        for part in training:
            part.training = True
    return {name: torch.cat(rows) for name, rows in found.items() if rows}


def _read(batch: Mapping[str, Tensor], ignored_label: int | None) -> Tensor | None:
    """Return which tokens of a batch count, (batch, length) bool; None: all."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    read = None if mask is None or mask.ndim != 2 else mask != 0
    ids = batch.get("input_ids")
    if ignored_label is None or labels is None or ids is None or labels.shape != ids.shape:
        return read
    learned = labels != ignored_label
    return learned if read is None else learned & read


def check_all_read(
    found: Mapping[str, Tensor], readers: Mapping[str, TargetSpec], option: str
) -> None:
    """Raise `ConfigError` for a layer that read nothing, or NaN; `option` starts from it."""
    for group, spec in readers.items():
        if group not in found or not len(found[group]):
            raise ConfigError(
                f"{spec.site.module} read nothing in these batches, and {option} starts from that; "
                "pass others, or leave it out of target_modules"
            )
        if not found[group].isfinite().all():
            raise ConfigError(
                f"{spec.site.module} read NaN or infinite values in these batches, and {option} "
                "starts from that; pass others, or run the model in float32"
            )


def with_ranks(
    specs: Iterable[TargetSpec], activations: Mapping[str, Tensor], config: LoraConfig
) -> list[TargetSpec]:
    """Return the specs with the ranks that an initialization gives them; those of 0 are gone."""
    assert config.init.ranks is not None
    by_name = {p.site.name: p for p in specs}
    rows = {name: activations[p.site.input_group or p.site.module] for name, p in by_name.items()}
    given = config.init.ranks({name: (p.r, p.alpha) for name, p in by_name.items()}, rows)
    return [
        replace(by_name[name], r=r, alpha=alpha, scale=config.scale(r, alpha))
        for name, (r, alpha) in given.items()
        if r
    ]
