"""The bytes of an adapter's files. What they hold is foreign: every flaw ends in one clear line."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab._util.dtypes import NAMES, dtype_name
from lora_lab._util.files import is_hollow
from lora_lab._util.json_files import misfit, parse_json, read_bytes, words_of
from lora_lab._util.quiet import first_line
from lora_lab._util.torch_files import load_plain
from lora_lab.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# What PEFT has no form for; see `checkpoint.native`.
NATIVE_CONFIG_FILE = "lora_lab_adapter.json"
NATIVE_WEIGHTS_FILE = "lora_lab_adapter.safetensors"
PICKLE_FILE = "adapter_model.bin"
_LARGEST_JSON = 16 * 2**20  # bytes


def quoted(value: object, most: int = 80) -> str:
    """Return what a file holds as it may stand in a message: quoted, on one line, not too long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        AdapterError: it is not there, not JSON, or not an object.
    """
    try:
        text = read_bytes(path, _LARGEST_JSON, follow=True)
        value = parse_json(text, _unique_keys)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise AdapterError(f"{path} is not readable JSON ({reason}); fetch it again") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{path} is not a JSON object of settings; fetch it again")
    return value


def check_settings(settings: Mapping[str, Any], path: Path, kind: Any) -> None:
    """Refuse settings that are not of their types.

    Args:
        settings: what a file holds.
        path: of the file.
        kind: a TypedDict of `checkpoint.schema`.

    Raises:
        AdapterError: the line names the first that is not.
    """
    if (name := misfit(settings, kind)) is not None:
        raise AdapterError(
            f"{path}: {name} is {words_of(kind, name)} ({quoted(settings[name])}); "
            "fetch the adapter again"
        )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two equal keys one reader takes the first and another the last.
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{quoted(double)} stands twice")
    return mapping


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as a file holds it.

    Attributes:
        dtype: what it holds, one of `DTYPES`: "float32", "bfloat16" …
        shape: its dimensions.
        data: its bytes, uint8.
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """Return a tensor's bytes; they are not copied where it lies contiguous on the CPU."""
        import torch

        flat = tensor.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy() if len(flat) else np.empty(0, np.uint8)
        return cls(dtype_name(tensor.dtype), tuple(tensor.shape), data)

    def numpy(self) -> np.ndarray:
        """Return the numbers; float32 of a float type that NumPy has not."""
        if self.dtype == "bfloat16":  # the upper half of a float32
            upper = self.data.view(np.uint16).astype(np.uint32)
            return (upper << 16).view(np.float32).reshape(self.shape)
        if self.dtype.startswith("float8"):
            return np.asarray(self.torch().float())
        return self.data.view(self.dtype).reshape(self.shape)

    def torch(self) -> Tensor:
        """Return it as a tensor, in the type of the file."""
        import torch

        dtype = getattr(torch, self.dtype)
        if not len(self.data):
            return torch.empty(self.shape, dtype=dtype)
        return torch.from_numpy(self.data).view(dtype).reshape(self.shape)


def read_tensors(
    path: Path, *, allow_pickle: bool
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return a file's tensors, and the metadata that safetensors keep beside them.

    Args:
        path: a safetensors file, or a pickle of a state dict.
        allow_pickle: whether to read a pickle, with `weights_only=True`: it can build tensors and
            plain containers, and call nothing else.

    Raises:
        AdapterError: the file is missing or damaged, or a pickle that was not asked for.
    """
    if not path.is_file():
        raise AdapterError(f"there is no file {path}; name the adapter's file or folder")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not allow_pickle:
        raise AdapterError(
            f"{path} is a pickle, which can run code; save it as safetensors where you trust it"
        )
    return _read_pickle(path), {}


def _read_safetensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    from safetensors import safe_open

    tensors = {}
    try:
        with safe_open(path, framework="np") as checked:  # raises where the header does not fit
            metadata = checked.metadata() or {}
        if is_hollow(path.stat()):
            raise ValueError("it is nearly all holes")
        # Its own reader knows only what NumPy has a type for.
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for key, entry in sorted(header.items()):
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                data = np.fromfile(file, np.uint8, end - begin)
                tensors[key] = StoredTensor(NAMES[entry["dtype"]], tuple(entry["shape"]), data)
    except Exception as error:  # a damaged header raises whatever its fields run into
        raise _damaged(path, error) from None
    return tensors, metadata


def _read_pickle(path: Path) -> dict[str, StoredTensor]:
    import torch

    value: Any
    try:
        value = load_plain(path, follow=True)
    except pickle.UnpicklingError:
        raise AdapterError(
            f"{path} is not a plain state dict, and nothing else is unpickled; "
            "save its tensors as safetensors where you trust it"
        ) from None
    except Exception as error:  # a broken pickle raises whatever its opcodes run into
        raise _damaged(path, error) from None
    # loralib's own example wraps the state dict once.
    if isinstance(value, Mapping) and isinstance(value.get("model_state_dict"), Mapping):
        value = value["model_state_dict"]
    if not isinstance(value, Mapping):
        raise AdapterError(f"{path} holds no state dict; name the file with the adapter's tensors")
    try:
        return {
            key: StoredTensor.of(tensor)
            for key, tensor in value.items()
            if isinstance(key, str) and isinstance(tensor, torch.Tensor)
        }
    except Exception as error:  # a kind of tensor that no adapter holds: sparse, complex …
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> AdapterError:
    return AdapterError(f"{path} is damaged ({first_line(error)}); fetch it again")
