"""What attention and dropout keep on a GPU: torch's own operations, and sizes by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab._util.torch_private import FakeTensorMode
from lora_lab.budget.dry_run import dry_run
from lora_lab.budget.gpu import Gpu
from lora_lab.budget.gpu_attention import GpuKernels, attention_scratch
from lora_lab.budget.meter import LiveStorages
from lora_lab.configs import LoraConfig
from tests.helpers.measured_step import llama

BATCH, HEADS, LENGTH, SIZE = 2, 4, 40, 16
T4 = Gpu("T4", (7, 5), (2, 13))
A100 = Gpu("A100", (8, 0), (2, 13))
WHOLE = BATCH * HEADS * LENGTH * SIZE  # numbers of q
SCORES = BATCH * HEADS * LENGTH**2
FLASH_SEED, EFFICIENT_SEED = 24, 16  # of the random numbers, drawn or not


def kept(
    gpu: Gpu, dtype: torch.dtype, kv_heads: int = HEADS, size: int = SIZE, **options: Any
) -> int:
    """Return the bytes that one call keeps beside q, k, v, the mask and its own output."""
    with FakeTensorMode():
        q = torch.empty(BATCH, HEADS, LENGTH, size, dtype=dtype, requires_grad=True)
        k, v = (
            torch.empty(BATCH, kv_heads, LENGTH, size, dtype=dtype, requires_grad=True)
            for _ in range(2)
        )
        if options.pop("mask", False):
            options["attn_mask"] = torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool)
        counter = LiveStorages([q, k, v, *(t for t in options.values() if isinstance(t, Tensor))])
        before = counter.live
        grouped = kv_heads != HEADS
        with GpuKernels(gpu), counter:
            out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, **options)
        assert out.shape == q.shape
        found = counter.live - before - out.untyped_storage().nbytes()
        out.sum().backward()
        assert q.grad is not None
        return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_fused_kernels_keep_a_number_a_row(causal: bool, dropout: float) -> None:
    options: dict[str, Any] = {"is_causal": causal, "dropout_p": dropout}
    rows = BATCH * HEADS * 4
    assert kept(A100, torch.float16, **options) == rows * LENGTH + FLASH_SEED
    assert kept(A100, torch.bfloat16, kv_heads=2, **options) == rows * LENGTH + FLASH_SEED
    # The memory-efficient kernel's rows are a multiple of 32.
    assert kept(T4, torch.float32, **options) == rows * 64 + EFFICIENT_SEED
    assert kept(T4, torch.float16, **options) == rows * 64 + EFFICIENT_SEED


def test_a_mask_is_kept_in_the_models_dtype() -> None:
    rows = BATCH * HEADS * 4 * 64 + EFFICIENT_SEED
    assert kept(A100, torch.float16, mask=True) == rows + 2 * BATCH * LENGTH**2
    assert kept(T4, torch.float32, mask=True) == rows + 4 * BATCH * LENGTH**2


def test_flash_pads_heads_to_a_multiple_of_8() -> None:
    lse = 4 * BATCH * HEADS * LENGTH + FLASH_SEED
    # Padded copies of q, k and v; the output is a view of one as wide.
    assert kept(A100, torch.float16, size=20) == lse + 3 * 2 * BATCH * HEADS * LENGTH * 24


@pytest.mark.parametrize("causal", [False, True])
def test_the_math_kernel_keeps_scores_in_float32(causal: bool) -> None:
    """Scaled q, scaled and repeated k, repeated v, and the probabilities."""
    for gpu, dtype in ((T4, torch.float16), (T4, torch.float32), (A100, torch.float32)):
        found = kept(gpu, dtype, kv_heads=2, is_causal=causal)
        assert found == 4 * (SCORES + 3 * WHOLE)
    assert kept(T4, torch.bfloat16, is_causal=causal) == 4 * (SCORES + 3 * WHOLE)
    assert kept(T4, torch.bfloat16, mask=True) == 4 * (SCORES + 3 * WHOLE)
    # And with dropout what is left of them, and a byte each of what was dropped.
    found = kept(T4, torch.float16, kv_heads=2, is_causal=causal, dropout_p=0.1)
    assert found == 4 * (2 * SCORES + 3 * WHOLE) + SCORES


def test_dropout_is_the_same_function() -> None:
    """The math kernel's steps with dropout, against torch's, where nothing is dropped."""
    torch.manual_seed(0)
    q = torch.randn(BATCH, HEADS, LENGTH, SIZE, dtype=torch.bfloat16)
    k, v = torch.randn(2, BATCH, 2, LENGTH, SIZE, dtype=torch.bfloat16)
    options: dict[str, Any] = {"is_causal": True, "enable_gqa": True}
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    with GpuKernels(T4):
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=1e-12, **options)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_dropout_keeps_bytes() -> None:
    with FakeTensorMode():
        x = torch.empty(100, requires_grad=True)
        counter = LiveStorages([x])
        with GpuKernels(T4), counter:
            y = nn.Dropout(0.1)(x)
        assert counter.live == 400 + 400 + 100
        with GpuKernels(T4):
            assert F.dropout(input=x, p=0.1, training=False) is x
            assert F.dropout(x, 0.0).shape == x.shape
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
def test_recomputed_blocks_take_the_same_kernel() -> None:
    config = LoraConfig(r=2, target_modules=["q"])
    options: dict[str, Any] = {"batch_size": 2, "sequence_length": 64, "dtype": "float16"}
    plain, recomputed = (
        dry_run(llama(64), config, gradient_checkpointing=on, device="T4", **options)
        for on in (False, True)
    )
    assert plain.notes == recomputed.notes
    assert "memory-efficient attention takes no grouped queries" in plain.notes[0]
    assert recomputed.peak < plain.peak


def test_flash_attention_sums_its_gradient_in_float32() -> None:
    query = torch.empty(2, 3, 100, 40, dtype=torch.bfloat16)
    # 128 rows of 64 floats and one more for the row sum.
    assert attention_scratch(query, query, "flash") == 4 * 2 * 3 * 128 * (64 + 1)
    wide = torch.empty(2, 3, 100, 160, dtype=torch.bfloat16)  # from 128 on in steps of 64
    assert attention_scratch(wide, wide, "flash") == 4 * 2 * 3 * 128 * (192 + 1)
    shared = torch.empty(2, 1, 100, 40, dtype=torch.bfloat16)  # dK and dV of each head of q
    more = attention_scratch(query, shared, "flash") - attention_scratch(query, query, "flash")
    assert more == 2 * 2 * 3 * 100 * 40 * 2


def test_memory_efficient_attention_sums_its_gradient_in_tiles() -> None:
    query = torch.empty(2, 3, 100, 40)
    # Two tiles of 64 × 64 a head, each with 16 bytes before it, and the row sum.
    expected = 2 * 3 * (2 * (64 * 64 * 4 + 16) + 100 * 4)
    assert attention_scratch(query, query, "efficient") == expected
