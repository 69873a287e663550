"""GGUF files, against the package gguf that wrote them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from lora_lab.models.gguf_file import GgufFile
from tests.helpers.tiny_gguf import KINDS, write_tiny_gguf

VALUES = {
    "uint8": 200, "int8": -100, "uint16": 60_000, "int16": -30_000, "uint32": 4_000_000_000,
    "int32": -2_000_000_000, "float32": 0.5, "bool": True, "string": "Ġé日", "uint64": 2**63,
    "int64": -(2**62), "float64": 0.1,
    "array": ["a", "", "日本"],
}  # fmt: skip


@pytest.fixture
def everything(tmp_path):
    """A file with a value of each type, arrays of them, and an alignment of its own."""
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "none")
    writer.add_custom_alignment(64)
    for kind, value in VALUES.items():
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_array("x.floats", [0.5, 1.5])
    writer.add_array("x.bools", [True, False])
    for dtype in ("int8", "int16", "int32", "int64", "float64", "float16", "float32"):
        writer.add_tensor(dtype, np.arange(6, dtype=dtype).reshape(3, 2) - 2)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file):
        step()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "all.gguf"


def test_every_kind_of_value(everything):
    found = GgufFile(everything.read_bytes()).metadata
    assert {key: found[f"x.{key}"] for key in VALUES} == VALUES
    assert (found["x.numbers"], found["x.floats"], found["x.bools"]) == (
        [1, -2, 3],
        [0.5, 1.5],
        [True, False],
    )
    fields = gguf.GGUFReader(everything).fields
    assert found == {k: f.contents() for k, f in fields.items() if not k.startswith("GGUF.")}


def test_plain_numbers(everything):
    file = GgufFile(everything.read_bytes())
    for tensor in file.tensors:
        if tensor.name.startswith("float") and tensor.name != "float64":
            values = file.dequantized(tensor)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, np.arange(6.0).reshape(3, 2) - 2)


@pytest.mark.parametrize("kind", [KINDS.Q4_1, KINDS.Q5_0, KINDS.Q8_0, KINDS.BF16, KINDS.F16])
def test_tensors_are_those_that_gguf_reads(tmp_path, kind):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", kind)
    file = GgufFile(path.read_bytes())
    theirs = gguf.GGUFReader(path).tensors
    assert [tensor.name for tensor in file.tensors] == [tensor.name for tensor in theirs]
    for ours, their in zip(file.tensors, theirs, strict=True):
        assert ours.start == their.data_offset
        expected = gguf.dequantize(their.data, their.tensor_type)
        np.testing.assert_array_equal(file.dequantized(ours), expected)


def test_what_is_no_whole_file_is_refused(everything):
    whole = everything.read_bytes()
    head = min(tensor.start for tensor in GgufFile(whole).tensors) - 64
    for end in (0, 3, 23, *range(24, head, 7)):
        with pytest.raises(ValueError, match="breaks off"):
            GgufFile(whole[:end])
    for other in (b"PK\3\4" + whole[4:], whole[:4] + b"\1\0\0\0" + whole[8:]):
        with pytest.raises(ValueError, match="no GGUF file of version 2 or 3"):
            GgufFile(other)
