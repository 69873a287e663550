"""What bitsandbytes does to 4-bit weights on a CPU, and how they come to train all the same.

Seen on bitsandbytes 0.50, which is not imported here. Where a CPU has AVX512-BF16, `Linear4bit`
repacks its weight in place on the first pass in evaluation mode that needs no gradient, with
absmax rounded to bfloat16, and hands no gradient on from then on: a model that was asked anything
would never train. Saving its state packs it back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lora_lab._util.torch_private import parameters_of


def undo_cpu_layout(modules: Iterable[nn.Module]) -> None:
    """Have 4-bit weights as they were packed at first, which is how they train and are read."""
    for module in modules:
        state = getattr(parameters_of(module).get("weight"), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            module.state_dict()


def prevent_cpu_layout(model: nn.Module) -> list[nn.Module]:
    """Keep 4-bit layers as they train, in evaluation too; return those that are kept so."""
    layers: list[Any] = [m for m in model.modules() if vars(m).get("support_avx512bf16_for_cpu")]
    undo_cpu_layout(layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return layers


def allow_cpu_layout(layers: Iterable[Any]) -> None:
    """Undo `prevent_cpu_layout`, which returned these."""
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
