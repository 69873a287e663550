"""Whether a quantized base can be trained through: asked before anything is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.cpu_layout import undo_cpu_layout
from lora_lab.anatomy.packed import linear_size, packing
from lora_lab.anatomy.wrappers import modules_within
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.own_forward import base_output, hold_weight
from lora_lab.training import processes

_ENOUGH = (
    0.5  # of what a layer reads; where only a scale is differentiated one entry has a gradient
)


def check_packed(model: nn.Module) -> None:
    """Refuse packed layers that hand no gradient on to what they read.

    Such a layer (torchao's with quantized activations, kernels for inference) cuts its branch off:
    what stands below it would learn from the rest of the model alone, and nothing would say so.

    Raises:
        ConfigError: the line names the layer; or the base is to be cut into shards.
    """
    untrainable = _untrainable(model)
    tried = set()
    for path, layer in modules_within(model):
        kind = packing(layer)
        if kind is None:
            if untrainable and type(layer).__module__.startswith("transformers.integrations."):
                raise ConfigError(
                    f"{path} ({type(layer).__name__}) computes with quantized weights that "
                    "transformers says cannot be trained through; load the base unquantized, or "
                    "dequantized (dequantize=True in its quantization config)"
                )
            continue
        if processes.sharded():
            raise ConfigError(
                f"{path} holds {kind} weights, which FSDP cannot cut; load the base unquantized, "
                "or launch without FSDP: each process then keeps the whole of it"
            )
        like = type(layer), type(hold_weight(layer)), linear_size(layer)
        if like not in tried and not _hands_on(layer, _dtype(model)):
            class_name = type(layer).__name__.removeprefix("Adapted")
            raise ConfigError(
                f"{path} ({class_name}, {kind} weights) hands no gradient on to what it reads, so "
                "that nothing below it would be trained right; load the base unquantized, or "
                "quantized in its weights only"
            )
        tried.add(like)


def _untrainable(model: nn.Module) -> bool:
    """Whether transformers says so of what it has quantized: MXFP4's experts, GGUF's blocks."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    ways = ("is_trainable", "is_qat_trainable")
    return quantizer is not None and not any(getattr(quantizer, way, True) for way in ways)


@torch.enable_grad()
def _hands_on(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether nearly all that a layer reads has a gradient; a layer that cannot be tried has."""
    features, _ = linear_size(layer) or (0, 0)
    device = next(t.device for t in (*layer.parameters(), *layer.buffers()))
    if device.type == "meta":
        return True
    undo_cpu_layout([layer])
    x = torch.linspace(-1, 1, features, device=device, dtype=dtype)[None].requires_grad_()
    # In the mode of training: AutoAWQ's layers, and kernels for inference, ask for it.
    with _in_training(layer), contextlib.suppress(Exception):  # which the first step will tell of
        y: Any = base_output(layer, x)
        gradient: Tensor | None = None
        if y.requires_grad:
            (gradient,) = torch.autograd.grad(y.float().sum(), x, allow_unused=True)
        return gradient is not None and int((gradient != 0).sum()) >= _ENOUGH * features
    return True


@contextlib.contextmanager
def _in_training(layer: nn.Module) -> Iterator[None]:
    before = layer.training
    layer.train()
    try:
        yield
    finally:
        layer.train(before)


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that a model computes in: that of its first plain numbers."""
    plain = (p.dtype for p in model.parameters() if p.is_floating_point() and p.element_size() > 1)
    return next(plain, torch.float32)
