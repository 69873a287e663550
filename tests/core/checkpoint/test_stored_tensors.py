"""Tensors as files hold them: the bytes that torch reads, the numbers too, without torch."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lab.checkpoint.files import StoredTensor, read_tensors
from lora_lab.errors import AdapterError

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
WHOLE = ("int64", "int32", "int16", "int8", "uint8", "bool")


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE])
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (7,)])
def test_what_torch_reads(dtype, shape, tmp_path):
    torch.manual_seed(0)
    tensor = (torch.randn(shape) * 3).to(getattr(torch, dtype))
    # A byte before it, so that it need not begin at a multiple of its entries' size.
    path = tmp_path / "a.safetensors"
    save_file({"odd": torch.ones(1, dtype=torch.uint8), "x": tensor}, path, {"format": "pt"})
    tensors, metadata = read_tensors(path, allow_pickle=False)
    assert metadata == {"format": "pt"}
    theirs = load_file(path)["x"]
    for own in (tensors["x"], StoredTensor.of(theirs)):
        assert own.torch().dtype == theirs.dtype
        assert own.torch().shape == theirs.shape
        assert torch.equal(own.torch().double(), theirs.double())
        numbers = own.numpy()
        assert numbers.shape == shape
        np.testing.assert_array_equal(numbers.astype(np.float64), theirs.double().numpy())
    if dtype not in FLOATS[3:]:
        assert numbers.dtype == theirs.numpy().dtype
    else:
        assert numbers.dtype == np.float32


def test_a_pickle_of_odd_tensors_ends_in_one_line(tmp_path):
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(AdapterError, match="is damaged"):
        read_tensors(tmp_path / "a.pt", allow_pickle=True)


def test_a_file_that_is_nearly_all_holes_is_not_read_into_memory(tmp_path):
    """Zeros that no disk holds: what takes 4 KB to send would take 64 GiB of memory."""
    path, count = tmp_path / "a.safetensors", 2**34
    header = {"x": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * count)
    with pytest.raises(AdapterError, match=r"is damaged \(it is nearly all holes\)"):
        read_tensors(path, allow_pickle=False)
