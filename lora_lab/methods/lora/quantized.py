"""Quantized bases: bitsandbytes' 4-bit and 8-bit layers under LoRA (Dettmers et al., 2023).

The adapter stands beside the layer's own forward pass; the packed weights are never touched. The
layers are told by their names, so that nobody needs bitsandbytes who has none of them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lab.anatomy.types import Site
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.own_forward import base_tensor, hold_weight, home

_BITS = {"Linear4bit": 4, "Params4bit": 4, "Linear8bitLt": 8, "Int8Params": 8}


def bits(layer: nn.Module) -> int | None:
    """Return 4 or 8 for a quantized layer, None for any other."""
    weight = hold_weight(layer)
    # Until it is moved to its device such a layer holds floating-point weights still, but its
    # forward pass is no plain product.
    kinds = [kind.__name__ for kind in (*type(layer).__mro__, *type(weight).__mro__)]
    return next((_BITS[kind] for kind in kinds if kind in _BITS), None)


def stand_in(layer: nn.Module, site: Site) -> Tensor:
    """Return a matrix of W₀'s shape and device without its values: factors are float32 beside it.

    It takes no memory: every entry is the same one.
    """
    return torch.zeros(1, device=home(layer)).expand(site.out_features, site.in_features)


def dequantized(path: str, layer: nn.Module) -> Tensor:
    """Return W₀ (out, in) of a quantized layer, in the dtype that it de-quantizes to.

    Raises:
        AdapterError: bitsandbytes is not installed, or too old for this layer.
    """
    packed: Any = layer
    weight: Any = base_tensor(layer)
    W: Tensor
    if hasattr(layer, "dequantize"):
        W = packed.dequantize()
        return W.detach()
    if weight.is_floating_point():
        return cast(Tensor, weight).detach()
    if bits(layer) == 8:
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
    W = dequantize_4bit(weight.data, weight.quant_state)
    return W.detach().view(packed.out_features, packed.in_features)


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
