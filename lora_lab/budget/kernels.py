"""Which kernel computes attention on an NVIDIA GPU, by torch's own rules.

torch asks one kernel after another whether it can (`select_sdp_backend`), and computes score by
score, in the memory that these take, where none can. The rules are in
aten/src/ATen/native/transformers: `cuda/sdp_utils.cpp` and `sdp_utils_cpp.h`, read at torch 2.11 to
2.14; each one below names its function there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lora_lab.budget.gpu import Gpu

_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Attention:
    """What `scaled_dot_product_attention` is given.

    Attributes:
        dtype: of q, k and v.
        heads: of q.
        kv_heads: of k and v as they are given, with `enable_gqa` where fewer.
        size: of one head of q and k.
        value_size: of one head of v.
        mask: there is one as a tensor.
        causal: `is_causal`.
        square: there are as many keys as queries.
        dropout: probability.
        training: q, k or v needs a gradient.
        learned_mask: so does the mask.
    """

    dtype: str
    heads: int
    kv_heads: int
    size: int
    value_size: int
    mask: bool = False
    causal: bool = True
    square: bool = True
    dropout: float = 0.0
    training: bool = True
    learned_mask: bool = False

    @property
    def grouped(self) -> bool:
        """Whether heads of q share one of k and v."""
        return self.kv_heads != self.heads


class Kernel(NamedTuple):
    """The kernel taken: "cudnn", "flash", "efficient" or "math"; and why not another, of math."""

    name: str
    why: str = ""


def kernel_of(attention: Attention, gpu: Gpu) -> Kernel:
    """Return the kernel that torch takes."""
    order = ["cudnn"] if _prefers_cudnn(gpu) else []
    why = []
    for name in [*order, "flash", "efficient"]:
        refused = _REFUSALS[name](attention, gpu)
        if not refused:
            return Kernel(name)
        why.append(f"{_NAMES[name]} {refused}")
    return Kernel("math", "; ".join(why))


def math_note(why: str, gpu: Gpu) -> str:
    """Return what people should know where `why` leaves the math kernel to a GPU."""
    return (
        f"attention on {gpu.name} is computed score by score, in memory that grows with the square "
        f"of the length: {why}"
    )


def _prefers_cudnn(gpu: Gpu) -> bool:
    """`check_prefer_cudnn_attention`. Before torch 2.9 it came last, after math."""
    return gpu.torch >= (2, 9) and gpu.cudnn > 91500 and gpu.capability[0] in (9, 10)


def _cudnn(attention: Attention, gpu: Gpu) -> str:
    """Why `can_use_cudnn_attention` says no; "" where it says yes."""
    if attention.dtype not in _HALF:  # check_dtypes_low_precision
        return f"takes no {attention.dtype}"
    if not (8, 0) <= gpu.capability <= (12, 1):  # check_cudnn_hardware_support
        return _too(gpu)
    if attention.learned_mask:  # check_attn_mask_shape
        return "takes no mask that learns"
    if attention.dropout * 16 % 1:  # check_cudnn_dropout
        return "takes dropout in sixteenths"
    sizes = attention.size, attention.value_size
    if max(sizes) > 128 or any(size % 8 for size in sizes):  # check_cudnn_tensor_shapes
        return f"takes no heads of {max(sizes)}"
    return ""


def _flash(attention: Attention, gpu: Gpu) -> str:
    """Why `can_use_flash_attention` says no; "" where it says yes. Grouped queries it takes."""
    if attention.mask:  # check_for_attn_mask
        return "takes no mask"
    if attention.size != attention.value_size or attention.size > 256:  # check_head_dim_size_flash
        return f"takes no heads of {max(attention.size, attention.value_size)}"
    if not (8, 0) <= gpu.capability <= (12, 1):  # check_flash_attention_hardware_support
        return _too(gpu)
    small = (8, 6) <= gpu.capability <= (8, 9) or gpu.capability >= (12, 0)
    wide = attention.size > 192 and (attention.size <= 224 or attention.dropout > 0)
    if attention.training and small and wide:
        # check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120
        return f"does not train heads of {attention.size} on {gpu.name}"
    if attention.causal and not attention.square:  # check_flash_causal_non_square_seqlens
        return "takes as many keys as queries where it is causal"
    if attention.dtype not in _HALF:  # check_dtypes_flash_attention
        return f"takes no {attention.dtype}"
    return ""


def _efficient(attention: Attention, gpu: Gpu) -> str:
    """Why `can_use_mem_efficient_attention` says no; "" where it says yes."""
    if not (5, 0) <= gpu.capability <= (12, 1):  # check_mem_efficient_hardware_support
        return _too(gpu)
    step = _alignment(attention, gpu)  # check_head_dim_size_mem_efficient
    if attention.size % step or attention.value_size % step:
        return f"takes heads of a multiple of {step}"
    # check_batch_size_and_num_heads_dense<supports_gqa>, true from pytorch#191085 on.
    if attention.grouped and gpu.torch < (2, 14):
        return "takes no grouped queries before torch 2.14"
    known = (*_HALF, "float32") if gpu.capability >= (8, 0) else ("float16", "float32")
    return "" if attention.dtype in known else f"takes no {attention.dtype} on {gpu.name}"


def _alignment(attention: Attention, gpu: Gpu) -> int:
    """`minimum_gemm_alignment`: what a head's size must be a multiple of."""
    major, half = gpu.capability[0], attention.dtype in _HALF
    least = 4 if major >= 8 else 1
    tensor_cores = major >= 8 or (major == 7 and half)  # use_tensor_cores
    return max(least, 128 // (16 if half else 32)) if tensor_cores else least


def _too(gpu: Gpu) -> str:
    return f"is not for {gpu.name}"


_REFUSALS: dict[str, Callable[[Attention, Gpu], str]] = {
    "cudnn": _cudnn,
    "flash": _flash,
    "efficient": _efficient,
}
_NAMES = {
    "cudnn": "cuDNN's",
    "flash": "flash attention",
    "efficient": "memory-efficient attention",
}
