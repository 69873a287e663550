"""Quantized layers: how their weights are packed, told by names and dtypes.

So nobody needs bitsandbytes, torchao or GPTQ's kernels who has none of their layers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.torch_private import buffers_of, parameters_of
from lora_lab._util.wrapper_tensors import held_tensors, scales_of

_BITS = {"Linear4bit": 4, "Params4bit": 4, "Linear8bitLt": 8, "Int8Params": 8}
_SIZES = ("in_features", "out_features"), ("infeatures", "outfeatures")  # the latter AutoGPTQ's


def packing(layer: nn.Module) -> str | None:
    """Return how a linear layer's weight is packed ("4-bit", "float8_e4m3fn"); None: it is not."""
    kind: Any = type(layer)
    if (known := _bits(kind)) is not None:
        return known
    tensors = {
        name: tensor
        for name, tensor in (*parameters_of(layer).items(), *buffers_of(layer).items())
        if tensor is not None
    }
    if not tensors:  # most modules: asking them for sizes that they lack takes long
        return None
    weight = tensors.get("weight")
    kind = type(weight)
    if weight is not None and (known := _bits(kind)) is not None:
        # Until it is moved to its device such a layer holds floating-point weights still, but its
        # forward pass is no plain product.
        return known
    if linear_size(layer) is None:
        return None
    if weight is not None and not weight.is_floating_point() and _multiplies(layer):
        return None  # whole numbers that nobody can read
    # GPTQ's, AWQ's and HQQ's are called otherwise.
    found = tensors.values() if weight is None else (weight,)
    return next((_name(t) for t in found if t.ndim >= 2 and _is_packed(t)), None)


def packed_numbers(layer: nn.Module) -> tuple[int, int]:
    """Return how many numbers a packed layer's weight stands for beyond those stored, and bytes.

    The first is what a count of entries lacks (negative where scales are parameters too); the
    bytes are of all that the weight is read by, and of a bias that is no parameter.
    """
    in_features, out_features = linear_size(layer) or (0, 0)
    own = {name: p for name, p in parameters_of(layer).items() if p is not None and name != "bias"}
    others = (buffer for buffer in buffers_of(layer).values() if buffer is not None)
    tensors = [*own.values(), *others, *(scale for p in own.values() for scale in scales_of(p))]
    tensors += held_beside(layer)
    numbers = in_features * out_features - sum(parameter.numel() for parameter in own.values())
    bias: Any = getattr(layer, "bias", None)
    if isinstance(bias, Tensor) and not isinstance(bias, nn.Parameter):  # GPTQ's is a buffer
        numbers += bias.numel()
    return numbers, sum(held.nbytes for tensor in tensors for held in held_tensors(tensor))


def held_beside(layer: nn.Module) -> list[Tensor]:
    """Return the tensors that a packed layer keeps as no buffers: HQQ's, most in its `meta`."""
    own = vars(layer)
    meta: Any = own.get("meta")
    kept = [*own.values(), *(meta.values() if isinstance(meta, dict) else ())]
    return [value for value in kept if isinstance(value, Tensor)]


def move_held_beside(model: nn.Module, device: torch.device) -> None:
    """Move what `held_beside` returns of a model's packed layers: `model.to` passes it by."""
    for layer in model.modules():
        if packing(layer) is None:
            continue
        own = vars(layer)
        meta: Any = own.get("meta")
        for held in (own, meta if isinstance(meta, dict) else {}):
            held |= {k: t.to(device) for k, t in held.items() if isinstance(t, Tensor)}


def forget_quantization(model: Any) -> None:
    """Take transformers' labels off a model of which nothing is packed any more.

    With them it could not be saved, or would be read back as packed.
    """
    labeled = getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None)
    if not labeled or any(map(packing, model.modules())):
        return
    vars(model.config).pop("quantization_config", None)
    for label in ("quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(label, None)
    model.hf_quantizer, model.is_quantized = None, False


def linear_size(layer: Any) -> tuple[int, int] | None:
    """Return (in, out) of a linear layer, Linear or not; None of what does not tell."""
    for names in _SIZES:
        sizes = tuple(getattr(layer, name, None) for name in names)
        if all(isinstance(size, int) for size in sizes):
            return sizes  # type: ignore[return-value]
    return None


def _multiplies(layer: nn.Module) -> bool:
    kind = getattr(layer, "base_class", type(layer))  # an adapted layer's own
    return kind.forward is nn.Linear.forward


@functools.cache  # of each class, and there are few
def _bits(kind: Any) -> str | None:
    return next((f"{_BITS[k.__name__]}-bit" for k in kind.__mro__ if k.__name__ in _BITS), None)


def _is_packed(tensor: Tensor) -> bool:
    """Whether a tensor stands for other numbers: integers, 8-bit floats, torchao's, quanto's."""
    if not tensor.is_floating_point():
        return tensor.dtype is not torch.bool and not tensor.is_complex()
    return tensor.element_size() == 1 or type(tensor).dequantize is not Tensor.dequantize


def _name(tensor: Tensor) -> str:
    if type(tensor).dequantize is not Tensor.dequantize:
        return type(tensor).__name__
    return str(tensor.dtype).removeprefix("torch.")
