"""Stand-ins for bitsandbytes' layers, of their names and shapes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.tiny_models import tiny


class Params4bit(nn.Parameter):
    """Two 4-bit numbers a byte, (out·in/2, 1), as bitsandbytes packs them."""


class Linear4bit(nn.Linear):
    """A layer that can compute with its packed weights, and de-quantise them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.bias = layer.bias
        W = layer.weight.detach()
        self.step = W.abs().max().item() / 7
        codes = (W / self.step).round().to(torch.int8).add(8).to(torch.uint8).flatten()
        packed = (codes[::2] * 16 + codes[1::2])[:, None]
        self.weight = Params4bit(packed, requires_grad=False)

    def dequantize(self) -> torch.Tensor:
        codes = torch.stack([self.weight // 16, self.weight % 16], 1).flatten()
        return ((codes.to(torch.int8) - 8) * self.step).view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)


class Int8Params(nn.Parameter):
    SCB = None


class Linear8bitLt(nn.Linear):
    """Rows of int8 with the largest entry of each at 127; the scales are in `state` after use."""

    def __init__(self, layer: nn.Linear, used: bool) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        W, self.bias = layer.weight.detach(), layer.bias
        scales = W.abs().amax(1)
        self.weight = Int8Params((W / scales[:, None] * 127).round().to(torch.int8), False)
        self.state = SimpleNamespace(SCB=scales if used else None)
        self.weight.SCB = None if used else scales


def quantized(name: str = "llama") -> nn.Module:
    model = tiny(name)
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and "lm_head" not in path:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Linear4bit(module))
    return model.eval()
