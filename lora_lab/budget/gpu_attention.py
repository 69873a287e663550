"""What a GPU computes by operations of its own, on fake tensors: attention and dropout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lora_lab._util.dtypes import dtype_name
from lora_lab._util.torch_private import attention_kernel, safe_softmax
from lora_lab.budget.gpu import Gpu
from lora_lab.budget.kernels import Attention, kernel_of, math_note


class GpuKernels(TorchFunctionMode):
    """Has attention and dropout be the operations that a GPU would choose.

    Each keeps for its backward pass what torch's autograd has it keep, on any device; of the
    kernels themselves only the shapes are asked. Attention inside another function of torch's
    (`nn.MultiheadAttention`) is the CPU's still.

    Args:
        gpu: which one.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._gpu = gpu
        self._math = ""  # why some call goes to the math kernel

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of what was run here."""
        return (math_note(self._math, self._gpu),) if self._math else ()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is F.dropout:
            return _drop(*args, **{{"input": "x"}.get(k, k): v for k, v in (kwargs or {}).items()})
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """See `scaled_dot_product_attention` in ATen/native/transformers/attention.cpp."""
        given = (query, key, value)
        scale = query.size(-1) ** -0.5 if scale is None else scale
        if query.dim() != 4:  # check_tensor_shapes
            return _math(*given, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        training = torch.is_grad_enabled() and any(each.requires_grad for each in given)
        kernel = kernel_of(
            Attention(
                dtype_name(query.dtype),
                heads=query.size(1),
                kv_heads=key.size(1),
                size=query.size(3),
                value_size=value.size(3),
                mask=attn_mask is not None,
                causal=is_causal,
                square=query.size(2) == key.size(2),
                dropout=dropout_p,
                training=training,
                learned_mask=attn_mask is not None and attn_mask.requires_grad,
            ),
            self._gpu,
        )
        if kernel.name == "math":
            self._math = kernel.why
            return _math(*given, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if kernel.name == "flash":
            return _flash(*given, dropout_p, is_causal, scale)
        # Made anew by every layer, and kept by it.
        mask = _additive(attn_mask, query.dtype)
        chosen = (mask, training, dropout_p, is_causal)
        if kernel.name == "cudnn":
            return attention_kernel(kernel.name)(*given, *chosen, False, scale=scale)[0]
        if mask is not None:
            shape = (*query.shape[:3], key.size(2))
            mask = _aligned(mask).expand(shape)
        chosen = (mask, training, dropout_p, is_causal)
        return attention_kernel(kernel.name)(*given, *chosen, scale=scale)[0]


def _drop(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """One kernel that keeps a mask of bytes (`dropout` in ATen/native/Dropout.cpp)."""
    if inplace or not 0 < p < 1:
        return F.dropout(x, p, training, inplace)
    return torch.native_dropout(x, p, training)[0] if training else x


def _math(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float,
    grouped: bool,
) -> Tensor:
    """`_scaled_dot_product_attention_math`; with dropout its steps, for that is a GPU's too."""
    mask = _additive(mask, query.dtype)
    if not dropout:
        options = {"scale": scale, "enable_gqa": grouped}
        out: Tensor = attention_kernel("math")(
            query, key, value, mask, 0.0, causal, None, **options
        )[0]
        return out
    if causal:
        allowed = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool).tril()
        mask = _additive(allowed, torch.float32)
    if grouped:
        repeats = query.size(-3) // key.size(-3)
        key, value = (each.repeat_interleave(repeats, -3) for each in (key, value))
    query, scaled = query.float() * scale**0.5, key.float().transpose(-2, -1) * scale**0.5
    scores = query @ scaled
    scores = scores if mask is None else scores.add_(mask)
    scores = safe_softmax(scores)  # what was there is freed
    scores = torch.native_dropout(scores, dropout, True)[0]
    return (scores @ value.float()).to(value.dtype)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, causal: bool, scale: float
) -> Tensor:
    """Heads are padded to a multiple of 8 (`pad_last_dim`)."""
    size = query.size(-1)
    if size % 8:
        query, key, value = (F.pad(each, (0, -size % 8)) for each in (query, key, value))
    out: Tensor = attention_kernel("flash")(query, key, value, dropout, causal, False, scale=scale)[
        0
    ]
    return out[..., :size]


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`convert_boolean_attn_mask`."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.where(mask.logical_not(), float("-inf"), torch.zeros((), dtype=dtype))


def _aligned(mask: Tensor) -> Tensor:
    """Return a mask whose rows are a multiple of 8 numbers apart (`preprocess_mask`)."""
    length = mask.size(-1)
    return F.pad(mask, (0, 8 - length % 8))[..., :length] if length % 8 else mask


def attention_scratch(query: Tensor, key: Tensor, kernel: str) -> int:
    """Return what the backward pass of an attention kernel allocates for itself, in bytes.

    Args:
        query: (batch, heads, length, head size).
        key: likewise.
        kernel: "flash", "efficient" or "cudnn".

    - FlashAttention-2 (`mha_bwd` in cuda/flash_attn/flash_api.cpp): dQ is summed in float32,
      lengths rounded up to 128 and head sizes to 32, from 128 on to 64; a row sum of dO∘O; and of
      grouped queries dK and dV of every head of q. cuDNN's code is closed; it is taken for alike.
    - memory-efficient (cuda/attention_backward.cu, `workspace_size` in
      cuda/mem_eff_attention/kernel_backward.h): dQ in tiles of 64 × 64 float32 with 16 bytes each,
      and the row sum.
    """
    batch, heads, length, width = query.shape
    if kernel == "efficient":
        tiles = -(-length // 64) * -(-width // 64)
        return batch * heads * (4 * length + tiles * (4 * 64 * 64 + 16))
    rounded, step = -(-length // 128) * 128, 32 if width <= 128 else 64
    summed = 4 * batch * heads * rounded * (1 + -(-width // step) * step)
    if key.size(1) == heads:
        return summed
    return summed + 2 * batch * heads * key.size(2) * width * query.element_size()
