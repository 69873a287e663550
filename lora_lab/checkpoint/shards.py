"""safetensors files written tensor by tensor, in any order: only one tensor's bytes are needed.

The format: eight bytes with the header's length, a JSON header {name: dtype, shape, data_offsets},
then the bytes of all tensors one after another (github.com/huggingface/safetensors).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
from torch import Tensor

from lora_lab._util.dtypes import DTYPES, dtype_name
from lora_lab.errors import AdapterError


@dataclass(frozen=True)
class Shard:
    """One file to be written.

    Attributes:
        file: its name.
        tensors: {name: a tensor of its shape and dtype, which may be on the meta device}.
    """

    file: str
    tensors: Mapping[str, Tensor]


def plan_shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[Shard]:
    """Distribute tensors over files in their order, as transformers names them.

    Args:
        tensors: {name: a tensor of its shape and dtype}.
        max_bytes: of one file's tensors; a larger tensor has a file of its own.

    Raises:
        AdapterError: a tensor of a type that the format, or this writer, does not have.
    """
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if dtype_name(tensor.dtype) not in DTYPES:
            raise AdapterError(f"{key} holds {tensor.dtype}; load the model in bfloat16 or float32")
        if parts[-1] and size + tensor.nbytes > max_bytes:
            parts.append({})
            size = 0
        parts[-1][key] = tensor
        size += tensor.nbytes
    if len(parts) == 1:
        return [Shard("model.safetensors", parts[0])]
    return [
        Shard(f"model-{i:05d}-of-{len(parts):05d}.safetensors", part)
        for i, part in enumerate(parts, start=1)
    ]


class ShardWriter:
    """Writes the tensors of planned files, each to its place; a context manager.

    Args:
        folder: where the files are made.
        shards: what `plan_shards` returned.
    """

    def __init__(self, folder: Path, shards: list[Shard]) -> None:
        self._closing = contextlib.ExitStack()
        self._places: dict[str, tuple[IO[bytes], int]] = {}
        self._planned = {key: tensor for shard in shards for key, tensor in shard.tensors.items()}
        with contextlib.ExitStack() as closing:
            for shard in shards:
                file = closing.enter_context((folder / shard.file).open("wb"))
                for key, place in _begin(file, shard.tensors).items():
                    self._places[key] = file, place
            self._closing = closing.pop_all()

    def awaits(self, key: str, tensor: Tensor) -> bool:
        """Whether a tensor of this name, shape and dtype was planned."""
        planned = self._planned.get(key)
        return planned is not None and (planned.shape, planned.dtype) == (
            tensor.shape,
            tensor.dtype,
        )

    def write(self, key: str, tensor: Tensor) -> None:
        """Write one tensor that it `awaits`."""
        file, place = self._places[key]
        file.seek(place)
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.__exit__(kind, error, trace)


def _begin(file: IO[bytes], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Write a file's header and give it its length; return {name: where its bytes go}."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    # The widest types first, so that every tensor begins at a multiple of its entries' size.
    for key in sorted(tensors, key=lambda key: -tensors[key].dtype.itemsize):
        tensor = tensors[key]
        begin, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": DTYPES[dtype_name(tensor.dtype)].code,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        offsets[key] = begin
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    first = file.tell()
    file.truncate(first + end)
    return {key: first + offset for key, offset in offsets.items()}
