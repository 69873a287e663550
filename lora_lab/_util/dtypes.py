"""The types of a tensor's numbers: their names, sizes, and codes in safetensors files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from lora_lab.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Dtype(NamedTuple):
    """One type: bytes of a number, and the code in a safetensors header."""

    size: int
    code: str


DTYPES = {
    "float64": Dtype(8, "F64"),
    "float32": Dtype(4, "F32"),
    "bfloat16": Dtype(2, "BF16"),
    "float16": Dtype(2, "F16"),
    "float8_e4m3fn": Dtype(1, "F8_E4M3"),
    "float8_e5m2": Dtype(1, "F8_E5M2"),
    "int64": Dtype(8, "I64"),
    "int32": Dtype(4, "I32"),
    "int16": Dtype(2, "I16"),
    "int8": Dtype(1, "I8"),
    "uint64": Dtype(8, "U64"),
    "uint32": Dtype(4, "U32"),
    "uint16": Dtype(2, "U16"),
    "uint8": Dtype(1, "U8"),
    "bool": Dtype(1, "BOOL"),
}
NAMES = {dtype.code: name for name, dtype in DTYPES.items()}
MODEL_DTYPES = ("float32", "bfloat16", "float16")  # what a model's weights may be


def dtype_name(dtype: torch.dtype | str) -> str:
    """Return "float32" of torch.float32 and of "float32"."""
    return str(dtype).removeprefix("torch.")


def main_dtype(weights: Iterable[Tensor]) -> torch.dtype | None:
    """Return the type that most of a model's numbers have, of those that it may be loaded in.

    Another floating-point type where there are no others; None: there are none of either.
    """
    numbers: Counter[torch.dtype] = Counter()
    for weight in weights:
        if weight.is_floating_point():
            numbers[weight.dtype] += weight.numel()
    usual = [dtype for dtype, _ in numbers.most_common() if dtype_name(dtype) in MODEL_DTYPES]
    return next(iter(usual or numbers), None)


def learned_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return what is learned in beside weights of a type: float32, or that type if it is wider.

    Packed weights are of whole numbers, or of 8-bit floats, which torch promotes to nothing.
    """
    import torch

    return dtype if dtype.is_floating_point and dtype.itemsize > 4 else torch.float32


def model_dtype(dtype: torch.dtype | str) -> str:
    """Return the name of a type that a model's weights may be.

    Raises:
        ConfigError: another type.
    """
    name = dtype_name(dtype)
    if name not in MODEL_DTYPES:
        known = ", ".join(sorted(MODEL_DTYPES))
        raise ConfigError(f"dtype {name!r} is not modeled; use one of {known}")
    return name
