"""IA³ and OFT beside packed weights, whatever the layer calls them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import lora_lab as ll
from tests.helpers.quantized_layers import KINDS, quantize, values
from tests.helpers.tiny_models import tiny, tiny_inputs

METHODS: dict[str, Any] = {
    "IA3": ll.IA3Config(),
    "OFT": ll.OFTConfig(oft_block_size=4, target_modules=["o_proj", "down_proj"]),
}


def unpacked(layer: nn.Linear, kind: str) -> nn.Linear:
    with torch.no_grad():
        layer.weight.copy_(values(KINDS[kind](copy.deepcopy(layer))))
    return layer


def moved(model: nn.Module, config: Any) -> Any:
    adapter = ll.attach(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_packed_layer_learns_as_the_one_that_it_stands_for(method: str, kind: str) -> None:
    model = quantize(tiny("llama"), KINDS[kind])
    plain = quantize(tiny("llama"), lambda layer: unpacked(layer, kind))
    own, expected = moved(model, METHODS[method]), moved(plain, METHODS[method])
    inputs = tiny_inputs(plain)
    for each in (model, plain):
        each.train()(**inputs).logits.square().mean().backward()
    gradients = [[p.grad for p in adapter.parameters()] for adapter in (own, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    assert all(p.dtype == torch.float32 for p in own.parameters())
    with torch.no_grad():
        tuned = plain(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, tuned, rtol=1e-4, atol=1e-5)
        ll.merge(model, dequantize=True)
        torch.testing.assert_close(model(**inputs).logits, tuned, rtol=1e-4, atol=1e-5)
