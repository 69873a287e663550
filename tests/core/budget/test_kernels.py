"""Which kernel torch takes, row by row from the conditions in its sdp_utils.cpp."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_lab.budget.gpu import GPUS, Gpu
from lora_lab.budget.kernels import Attention, kernel_of, math_note

PLAIN = Attention("float16", heads=8, kv_heads=8, size=64, value_size=64)
GROUPED = replace(PLAIN, kv_heads=2)


def gpu(name: str, version: tuple[int, int] = (2, 13), cudnn: int = 0) -> Gpu:
    return Gpu(name, GPUS.get(name, (0, 0)), version, cudnn)


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_by_dtype_capability_heads_and_mask(
    dtype: str, grouped: bool, masked: bool, name: str
) -> None:
    """Flash: 16 bits, from 8.0, no mask; efficient: no grouped heads, bfloat16 from 8.0."""
    ampere = GPUS[name] >= (8, 0)
    flash = ampere and dtype in ("float16", "bfloat16") and not masked
    efficient = not grouped and dtype in ("float32", "float16", *["bfloat16"] * ampere)
    expected = "flash" if flash else "efficient" if efficient else "math"
    given = replace(GROUPED if grouped else PLAIN, dtype=dtype, mask=masked, causal=not masked)
    found = kernel_of(given, gpu(name))
    assert found.name == expected
    assert bool(found.why) == (expected == "math")


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        # check_head_dim_size_flash; check_head_dim_size_mem_efficient has no upper limit
        ("A100", {"size": 256, "value_size": 256}, "flash"),
        ("A100", {"size": 264, "value_size": 264}, "efficient"),
        ("A100", {"value_size": 128}, "efficient"),
        # check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120
        ("L4", {"size": 192, "value_size": 192}, "flash"),
        ("L4", {"size": 200, "value_size": 200}, "efficient"),
        ("L4", {"size": 200, "value_size": 200, "training": False}, "flash"),
        ("A100", {"size": 200, "value_size": 200}, "flash"),
        ("A10G", {"size": 256, "value_size": 256}, "flash"),
        ("A10G", {"size": 256, "value_size": 256, "dropout": 0.1}, "efficient"),
        # check_flash_causal_non_square_seqlens
        ("A100", {"square": False}, "efficient"),
        ("A100", {"square": False, "causal": False}, "flash"),
        # minimum_gemm_alignment: 8 numbers of 16 bits on tensor cores, 4 of float32 from 8.0 on
        ("A100", {"size": 20, "value_size": 20}, "flash"),
        ("T4", {"size": 20, "value_size": 20}, "math"),
        ("T4", {"size": 24, "value_size": 24}, "efficient"),
        ("P100", {"size": 21, "value_size": 21}, "efficient"),
        ("T4", {"size": 21, "value_size": 21, "dtype": "float32"}, "efficient"),
        ("A100", {"size": 20, "value_size": 20, "dtype": "float32"}, "efficient"),
        ("A100", {"size": 22, "value_size": 22, "dtype": "float32"}, "math"),
        # dropout is in both kernels
        ("A100", {"dropout": 0.1}, "flash"),
        ("T4", {"dropout": 0.1}, "efficient"),
    ],
)
def test_other_conditions(name: str, change: dict, expected: str) -> None:
    assert kernel_of(replace(PLAIN, **change), gpu(name)).name == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((12, 1), "flash"), ((13, 0), "math"), ((3, 7), "math")]
)
def test_architectures_that_the_kernels_are_built_for(
    capability: tuple[int, int], expected: str
) -> None:
    assert kernel_of(PLAIN, Gpu("", capability, (2, 13))).name == expected


@pytest.mark.parametrize("name", ["T4", "A100"])
def test_grouped_heads_from_torch_2_14_on(name: str) -> None:
    given = replace(GROUPED, dtype="float32")
    assert kernel_of(given, gpu(name)).name == "math"
    assert kernel_of(given, gpu(name, (2, 14))).name == "efficient"


@pytest.mark.parametrize(
    ("version", "cudnn", "change", "expected"),
    [
        ((2, 13), 91900, {}, "cudnn"),
        ((2, 13), 91500, {}, "flash"),
        ((2, 8), 91900, {}, "flash"),
        ((2, 13), 91900, {"kv_heads": 2}, "cudnn"),
        ((2, 13), 91900, {"mask": True}, "cudnn"),
        ((2, 13), 91900, {"mask": True, "learned_mask": True}, "efficient"),
        ((2, 13), 91900, {"dropout": 0.125}, "cudnn"),
        ((2, 13), 91900, {"dropout": 0.1}, "flash"),
        ((2, 13), 91900, {"size": 136, "value_size": 136}, "flash"),
        ((2, 13), 91900, {"size": 20, "value_size": 20}, "flash"),
        ((2, 13), 91900, {"dtype": "float32"}, "efficient"),
        ((2, 13), 91900, {"dtype": "float32", "kv_heads": 2}, "math"),
    ],
)
def test_cudnn_first_on_hopper(
    version: tuple[int, int], cudnn: int, change: dict, expected: str
) -> None:
    given = replace(PLAIN, **change)
    assert kernel_of(given, gpu("H100", version, cudnn)).name == expected
    assert kernel_of(given, gpu("A100", version, cudnn)).name != "cudnn"


def test_the_note_says_why_not_another() -> None:
    t4 = gpu("T4")
    line = math_note(kernel_of(GROUPED, t4).why, t4)
    assert line == (
        "attention on T4 is computed score by score, in memory that grows with the square of the "
        "length: flash attention is not for T4; memory-efficient attention takes no grouped "
        "queries before torch 2.14"
    )
