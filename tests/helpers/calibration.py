"""Batches that initializations from data are made from, and how two subspaces differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def samples(
    model: nn.Module, count: int = 4, length: int = 9, size: int = 1
) -> list[dict[str, Tensor]]:
    """Batches of random tokens, the same ones every time."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, config.vocab_size, (count, size, length), generator=generator)
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]


def sine(A: Tensor, B: Tensor) -> float:
    """The sine of the largest angle between the spaces that two factors' rows span, in float64."""
    first, second = (torch.linalg.qr(factor.double().T)[0] for factor in (A, B))
    return float(torch.linalg.matrix_norm(second - first @ (first.T @ second), 2).detach())


def inputs_read(model: nn.Module, path: str, batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """What a layer reads of each batch, by a hook of the test's own, in float64."""
    found: list[Tensor] = []
    layer = model.get_submodule(path)
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    return [x.double() for x in found]
