"""Whether a tensor fills its memory: torch keeps the strides of exactly those that do."""

import pytest
import torch

from lora_lab._util.dense import is_dense

W = torch.zeros(4, 6, 8, 2)
CASES = {
    "rows": (W, True),
    "transposed": (W.permute(2, 0, 3, 1), True),
    "channels last": (W.to(memory_format=torch.channels_last), True),
    "the first rows": (W[:2], True),
    "one row": (W[1:2], True),
    "some columns": (W[:, :3], False),
    "every other": (W[::2], False),
    "a column": (W[..., 1], False),
    "one entry many times": (torch.zeros(1).expand(5), False),
    "overlapping, as many as its span": (torch.zeros(8).as_strided((2, 2), (0, 3)), False),
    "windows": (torch.zeros(8).unfold(0, 4, 1), False),
}


@pytest.mark.parametrize("name", CASES)
def test_as_torch_has_it(name: str) -> None:
    tensor, dense = CASES[name]
    assert is_dense(tensor) == dense
    # "if input tensor is non-overlapping and dense then output strides will be same"
    # (torch.empty_like's memory_format), and no other tensor's can be.
    kept = torch.empty_like(tensor, memory_format=torch.preserve_format).stride()
    assert (kept == tensor.stride()) == dense


def test_nothing_and_a_number_are_dense() -> None:
    assert is_dense(torch.zeros(3, 0)[:, ::2])
    assert is_dense(torch.zeros(()))
