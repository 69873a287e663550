"""Names, sizes and codes of types are torch's and safetensors' own."""

import json

import pytest
import torch
from safetensors.torch import save

from lora_lab._util.dtypes import DTYPES, MODEL_DTYPES, dtype_name, main_dtype, model_dtype
from lora_lab.errors import ConfigError


@pytest.mark.parametrize("name", DTYPES)
def test_a_type_has_torchs_size_and_the_code_that_safetensors_writes(name):
    tensor = torch.zeros(1, dtype=getattr(torch, name))
    assert dtype_name(tensor.dtype) == dtype_name(name) == name
    assert DTYPES[name].size == tensor.element_size()
    file = save({"x": tensor})
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    assert header["x"]["dtype"] == DTYPES[name].code


def test_a_models_types_are_floating_and_others_are_refused():
    assert all(getattr(torch, model_dtype(name)).is_floating_point for name in MODEL_DTYPES)
    with pytest.raises(ConfigError, match="'int8' is not modeled; use one of bfloat16, float16, "):
        model_dtype(torch.int8)


def test_a_models_type_is_that_of_most_of_its_numbers():
    def zeros(count, dtype):
        return torch.zeros(count, dtype=dtype)

    half, few, whole = zeros(5, torch.bfloat16), zeros(2, torch.float32), zeros(99, torch.uint8)
    assert main_dtype([few, half, whole]) == torch.bfloat16
    assert main_dtype([zeros(9, torch.float8_e4m3fn), few]) == torch.float32  # packed, and norms
    assert main_dtype([zeros(9, torch.float64)]) == torch.float64
    assert main_dtype([whole]) is None
