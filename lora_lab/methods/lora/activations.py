"""What a model's layers read, for initializations that start from data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.methods.attached import bare


def layer_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the rows that each layer reads, (tokens, in) in float32, pads left out.

    The bare base model reads the batches in eval mode, without gradients.

    Args:
        model: read once a batch.
        layers: {name: a layer below it}, called with (batch, length, in).
        batches: the model's arguments, on its device.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    mask: Tensor | None = None

    def keep(name: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        rows = x[mask != 0] if mask is not None and mask.shape == x.shape[:2] else x.flatten(0, -2)
        found[name].append(rows.float())

    training = [part for part in model.modules() if part.training]
    hooks = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    model.eval()
    try:
        with torch.no_grad(), bare(model):
            for batch in batches:
                mask = batch.get("attention_mask")
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
        for part in training:
            part.training = True
    return {name: torch.cat(rows) for name, rows in found.items() if rows}
