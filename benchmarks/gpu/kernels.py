"""Which kernel computes attention: what torch takes on this GPU, against the forecast's table."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from benchmarks._measure import Row
from benchmarks.gpu.lines import Place
from lora_lab._util.dtypes import dtype_name
from lora_lab.budget.gpu import gpu_of
from lora_lab.budget.kernels import Attention, kernel_of

_NAMES = {
    SDPBackend.MATH.value: "math",
    SDPBackend.FLASH_ATTENTION.value: "flash",
    SDPBackend.EFFICIENT_ATTENTION.value: "efficient",
    SDPBackend.CUDNN_ATTENTION.value: "cudnn",
}
_BATCH, _HEADS, _LENGTH = 2, 8, 64
CALLS = tuple(
    itertools.product(
        (torch.float32, torch.float16, torch.bfloat16),
        (8, 2),  # heads of k and v
        (36, 64, 80, 128, 256),  # size of a head
        (False, True),  # a mask as a tensor
        (0.0, 0.1),  # dropout
        (False, True),  # training
    )
)


def kernels(place: Place) -> list[Row]:
    """Ask torch for each call, as `scaled_dot_product_attention` does before it computes."""
    gpu = gpu_of("T4" if place.small else place.device)
    assert gpu is not None, "an NVIDIA GPU is needed: the table is of theirs"
    wrong, names = [], set()
    for dtype, kv_heads, size, masked, dropout, training in CALLS:
        said = kernel_of(
            Attention(
                dtype_name(dtype),
                heads=_HEADS,
                kv_heads=kv_heads,
                size=size,
                value_size=size,
                mask=masked,
                causal=not masked,
                dropout=dropout,
                training=training,
            ),
            gpu,
        ).name
        make: dict[str, Any] = {"dtype": dtype, "device": place.device}
        query = torch.randn(_BATCH, _HEADS, _LENGTH, size, **make, requires_grad=training)
        key = torch.randn(_BATCH, kv_heads, _LENGTH, size, **make, requires_grad=training)
        mask = torch.ones(_BATCH, 1, _LENGTH, _LENGTH, dtype=torch.bool, device=place.device)
        number = torch._fused_sdp_choice(
            query,
            key,
            key,
            mask if masked else None,
            dropout,
            not masked,
            enable_gqa=kv_heads != _HEADS,
        )
        taken = _NAMES.get(number, str(number))
        names.add(taken)
        if taken != said:
            call = f"{dtype_name(dtype)}, {_HEADS}/{kv_heads} heads of {size}"
            more = ", mask" * masked + ", dropout" * (dropout > 0) + ", training" * training
            wrong.append(f"{call}{more}: {taken}, not {said}")
    return [
        Row(
            f"attention kernels that torch takes otherwise than forecast, of {len(CALLS)} calls",
            str(len(wrong)),
            "0",
            None if place.small else not wrong,
            "taken: " + ", ".join(sorted(names)) if place.small else "; ".join(wrong[:8]),
        )
    ]
