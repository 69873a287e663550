"""Stand-ins for bitsandbytes', torchao's, quanto's, HQQ's, GPTQ's and AWQ's layers.

Each does what the library's does on a CPU, tried on bitsandbytes 0.50, torchao 0.18, quanto 0.2.7,
HQQ 0.2.8; read in GPTQModel 7.7 (`TorchLinear`) and AutoAWQ 0.2.9 (`WQLinear_GEMM`).
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
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

    def forward(self, x: Tensor) -> Tensor:
        if self.state.SCB is None:
            self.state.SCB, self.weight.SCB = self.weight.SCB, None
        W = self.weight.float() * (self.state.SCB[:, None] / 127)
        return F.linear(x, W.to(x.dtype), self.bias)


class CpuLayout(Linear4bit):
    """With what bitsandbytes does where the CPU has AVX512-BF16, in evaluation and for good."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.support_avx512bf16_for_cpu = True
        self.weight.quant_state = SimpleNamespace(packing_format_for_cpu=False)

    def _repack(self, other: bool) -> None:
        if self.weight.quant_state.packing_format_for_cpu is not other:
            self.weight.data = self.weight.data.flip(0)
            self.weight.quant_state.packing_format_for_cpu = other

    def dequantize(self) -> Tensor:
        assert not self.weight.quant_state.packing_format_for_cpu
        return super().dequantize()

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self._repack(False)
        super()._save_to_state_dict(*arguments)

    def forward(self, x: Tensor) -> Tensor:
        if self.support_avx512bf16_for_cpu and not self.training and not x.requires_grad:
            self._repack(True)
        if not self.weight.quant_state.packing_format_for_cpu:
            return super().forward(x)
        self._repack(False)
        y = super().forward(x.detach())  # its kernel for this layout has no gradient
        self._repack(True)
        return y


class Int8Tensor(Tensor):
    """A tensor that stands for another, as torchao's do: what it has no rule for, it refuses."""

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Int8Tensor:
        made = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    def dequantize(self) -> Tensor:
        return self.codes.float() * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return F.linear(args[0], args[1].dequantize(), *args[2:])
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{cls.__name__} dispatch: {func}, {types}, {kwargs}")


class Dynamic(Int8Tensor):
    """With activations quantized as they come, by an operation that has no gradient."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            args = (args[0].detach(), *args[1:])
        return super().__torch_function__(func, types, args, kwargs or {})


class OfScaleAlone(Int8Tensor):
    """With activations that are rounded: the gradient goes through their scale, the largest's."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            scale = args[0].abs().amax(-1, keepdim=True) / 127
            args = ((args[0] / scale).round() * scale, *args[1:])
        return super().__torch_function__(func, types, args, kwargs or {})


def int8_codes(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """A Linear's weight in whole numbers, and what each row's are multiplied by."""
    W = layer.weight.detach()
    scale = W.abs().amax(1, keepdim=True) / 127
    return (W / scale).round().to(torch.int8), scale


def torchao(layer: nn.Linear, kind: type[Int8Tensor] = Int8Tensor) -> nn.Linear:
    layer.weight = nn.Parameter(kind(*int8_codes(layer)), requires_grad=False)
    return layer


class QModuleMixin(ABC):  # noqa: B024 - an ABC below a module is the point
    """First among the bases of quanto's layers, so that they are laid out as an ABC."""


class QLinear(QModuleMixin, nn.Linear):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.weight, self.bias = torchao(layer).weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class HQQLinear(nn.Module):
    """No Linear, no weight of that name, scales in a dictionary; and `to` does nothing."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = None if layer.bias is None else layer.bias.clone()  # plain, with a graph
        codes, scale = int8_codes(layer)
        self.W_q = nn.Parameter(codes.view(torch.uint8), requires_grad=False)
        self.meta = {"scale": scale, "zero": torch.zeros_like(scale), "nbits": 8, "axis": 1}

    def to(self, *_: Any, **__: Any) -> Any:
        return self

    def dequantize(self) -> Tensor:
        return (self.W_q.view(torch.int8).float() - self.meta["zero"]) * self.meta["scale"]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize(), self.bias)


class _WeightSizes:
    """What GPTQModel's layers say is their weight (`_LinearWeightMetadata`): no tensor."""

    requires_grad, ndim = False, 2

    def __init__(self, layer: GPTQLinear) -> None:
        self.device, self.dtype = layer.qweight.device, layer.scales.dtype
        self.shape = torch.Size((layer.out_features, layer.in_features))


class GPTQLinear(nn.Module):
    """Buffers alone, and nobody else knows how they are packed."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, scale = int8_codes(layer)
        self.register_buffer("qweight", codes.T.contiguous().view(torch.int32))
        self.register_buffer("scales", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    @property
    def weight(self) -> Any:
        return _WeightSizes(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qweight.view(torch.int8).T.float() * self.scales, self.bias)


class WQLinear(GPTQLinear):
    """AutoAWQ's: no weight of that name, and no gradient but in training mode."""

    weight: Any = property(lambda self: nn.Module.__getattr__(self, "weight"))

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return super().forward(x)


KINDS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "bitsandbytes, 4 bits": Linear4bit,
    "bitsandbytes, 4 bits on a CPU": CpuLayout,
    "bitsandbytes, 8 bits": lambda layer: Linear8bitLt(layer, used=False),
    "torchao": torchao,
    "quanto": QLinear,
    "HQQ": HQQLinear,
    "GPTQ": GPTQLinear,
    "AWQ": WQLinear,
}


def values(layer: Any) -> Tensor:
    """What a stand-in's weight is worth, (out, in): what it makes of the unit vectors."""
    with torch.no_grad():
        y = layer.train()(torch.eye(layer.in_features))
    return (y if layer.bias is None else y - layer.bias).T


def quantize(model: nn.Module, kind: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Put stand-ins in the place of a model's Linear layers, its head's aside."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and "lm_head" not in path:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, kind(module))
    return model.eval()


def quantized(name: str = "llama") -> nn.Module:
    return quantize(tiny(name), Linear4bit)
