"""Quantized bases, such as bitsandbytes' 4-bit layers, under LoRA (Dettmers et al., 2023).

The adapter stands beside the layer's own forward pass; the packed weights are never touched.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_lab._util.cpu_layout import undo_cpu_layout
from lora_lab._util.quiet import first_line
from lora_lab.anatomy.packed import linear_size, packing
from lora_lab.anatomy.types import Site
from lora_lab.errors import AdapterError, as_cause
from lora_lab.methods.lora.own_forward import base_output, base_tensor, hold_weight, home

_COLUMNS = 1024  # of W₀ that are read at a time


def stand_in(layer: nn.Module, site: Site) -> Tensor:
    """Return a matrix of W₀'s shape and device without its values: factors are float32 beside it.

    It takes no memory: every entry is the same one.
    """
    one = torch.zeros(1, device=home(layer), dtype=torch.float32)
    return one.expand(site.out_features, site.in_features)


def dequantized(path: str, layer: nn.Module) -> Tensor:
    """Return W₀ (out, in) of a quantized layer, in the dtype that it de-quantizes to.

    Raises:
        AdapterError: bitsandbytes is not installed, or too old for this layer, or the layer is
            another library's that does not say how its weights are read.
    """
    packed: Any = layer
    W: Tensor
    undo_cpu_layout([layer])
    if hasattr(layer, "dequantize"):
        W = packed.dequantize()
        return W.detach()
    weight: Any = None if hold_weight(layer) is None else base_tensor(layer)
    kind = packing(layer) or ""
    if not kind.endswith("-bit"):
        return _others(path, layer, weight, kind)
    state = getattr(weight, "quant_state", None)
    if state is None and weight.is_floating_point():  # not packed yet: it has not been moved
        return cast(Tensor, weight).detach()
    if kind == "8-bit":
        scales = getattr(weight, "SCB", None)
        if scales is None:  # the first forward pass moves them
            scales = packed.state.SCB
        # A row's largest entry is 127 (LLM.int8(), Dettmers et al., 2022, section 2.1).
        W = weight.detach().float() * (scales.float() / 127)[:, None]
        return W
    try:
        from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]
    except ImportError as error:
        raise AdapterError(
            f"{path} holds 4-bit weights, and reading them needs bitsandbytes ({error}); "
            "pip install bitsandbytes"
        ) from None
    W = dequantize_4bit(weight.data, state)
    return W.detach().view(packed.out_features, packed.in_features)


def _others(path: str, layer: Any, weight: Any, kind: str) -> Tensor:
    """Return W₀ of a quantized layer that is not bitsandbytes'; see `dequantized`."""
    W: Tensor
    if weight is not None and type(weight).dequantize is not Tensor.dequantize:
        W = weight.dequantize()  # torchao's, quanto's
        return W.detach()
    scale = getattr(layer, "weight_scale_inv", None)
    if weight is None or not weight.is_floating_point() or scale is None:
        return _of_unit_vectors(path, layer, kind)
    W, scale = weight.detach().float(), scale.detach().float()
    if scale.ndim:  # one for each block, as DeepSeek-V3's files have it
        for dimension, size in enumerate(layer.block_size):
            scale = scale.repeat_interleave(size, dimension)
        scale = scale[: W.shape[0], : W.shape[1]]
    return W * scale


@torch.no_grad()
def _of_unit_vectors(path: str, layer: nn.Module, kind: str) -> Tensor:
    """Return W₀ as what the layer makes of the unit vectors: each is one column, unrounded."""
    tensors = [t for t in (*layer.parameters(), *layer.buffers()) if t.element_size() > 1]
    own = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))  # scales, mostly
    device = next(t for t in (*layer.parameters(), *layer.buffers())).device
    bias: Any = getattr(layer, "bias", None)
    in_features, _ = cast("tuple[int, int]", linear_size(layer))
    columns = []
    try:
        for first in range(0, in_features, _COLUMNS):
            some = torch.arange(first, min(first + _COLUMNS, in_features), device=device)
            y = base_output(layer, functional.one_hot(some, in_features).to(own.dtype)).float()
            columns.append(y if bias is None else y - bias.float())
    except Exception as error:  # a kernel's, of any kind
        class_name = type(layer).__name__.removeprefix("Adapted")
        raise AdapterError(
            f"{path} holds {kind} weights of a {class_name}, which cannot be read here "
            f"({first_line(error)}); keep the adapter beside them, or load the base unquantized"
        ) from as_cause(error)
    return torch.cat(columns).T


def plain_layer(layer: nn.Module, weight: Tensor) -> nn.Linear:
    """Return a Linear with this weight (out, in) and the bias of a quantized layer."""
    d, k = weight.shape
    bias: Any = getattr(layer, "bias", None)
    with torch.device("meta"):
        plain = nn.Linear(k, d, bias=bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return plain
