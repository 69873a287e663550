"""A GGUF file's metadata and tensors, in one walk through its bytes.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package gguf's own reader
makes several arrays over a memory map for each of the 150,000 entries of a vocabulary, for seconds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

_FORMATS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))  # struct's, of a number
_STRING, _ARRAY = 8, 9
_PLAIN = {0: "f4", 1: "f2", 24: "i1", 25: "i2", 26: "i4", 27: "i8", 28: "f8"}  # others are blocks


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as it lies in the file.

    Attributes:
        name: GGUF's, such as "blk.0.attn_q.weight".
        shape: as torch has it, the slowest dimension first.
        kind: GGML's number of its type.
        start: where its bytes begin in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class GgufFile:
    """What a GGUF file holds.

    Attributes:
        metadata: the file's keys with their values; arrays are lists.
        tensors: in the file's order.
    """

    def __init__(self, data: bytes) -> None:
        """Walk through the bytes of a file.

        Raises:
            ValueError: it is none of version 2 or 3, breaks off, or is damaged.
        """
        self._data, self._at = data, 24
        try:
            magic, version, tensors, keys = struct.unpack_from("<4sIQQ", data)
            if magic != b"GGUF" or version not in (2, 3):
                raise ValueError("no GGUF file of version 2 or 3")
            self.metadata = {self._string(): self._value(self._number("I")) for _ in range(keys)}
            heads = [self._head() for _ in range(tensors)]
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ValueError(f"a GGUF file that breaks off, or damaged ({error})") from None
        step = self.metadata.get("general.alignment", 32)
        first = math.ceil(self._at / step) * step
        self.tensors = [GgufTensor(name, s, kind, first + start) for name, s, kind, start in heads]

    def dequantized(self, tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return a tensor's numbers in float32, by the package gguf's formulas.

        Raises:
            ValueError, NotImplementedError: gguf does not know the type.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(tensor.kind)
        per_block, size = GGML_QUANT_SIZES[kind]
        count = tensor.size // per_block * size
        raw = np.frombuffer(self._data, np.uint8, count, tensor.start)
        if tensor.kind in _PLAIN:
            values = raw.view(f"<{_PLAIN[tensor.kind]}")
        else:
            values = raw.reshape(*tensor.shape[:-1], tensor.shape[-1] // per_block * size)
        return dequantize(values, kind).reshape(tensor.shape)

    def _number(self, kind: str) -> Any:
        (found,) = struct.unpack_from(f"<{kind}", self._data, self._at)
        self._at += struct.calcsize(f"<{kind}")
        return found

    def _string(self) -> str:
        start = self._at + 8
        self._at = start + self._number("Q")
        return self._data[start : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_FORMATS[kind])
        item, count = self._number("I"), self._number("Q")
        if item not in _FORMATS:
            return [self._value(item) for _ in range(count)]
        start = self._at
        self._at += count * struct.calcsize(f"<{_FORMATS[item]}")
        return [*struct.unpack_from(f"<{count}{_FORMATS[item]}", self._data, start)]

    def _head(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        sizes = [self._number("Q") for _ in range(self._number("I"))]
        return name, tuple(reversed(sizes)), self._number("I"), self._number("Q")
