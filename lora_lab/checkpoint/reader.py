"""The one reader of adapters' files, whoever wrote them; neither a model nor torch is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lora_lab._util.files import user_path
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.files import CONFIG_FILE, NATIVE_CONFIG_FILE
from lora_lab.checkpoint.locate import whole_folder
from lora_lab.checkpoint.loralib import read_loralib
from lora_lab.checkpoint.native import NativeFile, read_native
from lora_lab.checkpoint.peft import peft_settings, read_peft
from lora_lab.checkpoint.peft_methods import method_of_type, read_method
from lora_lab.errors import AdapterError


def read_adapter(
    path: str | Path,
    *,
    lora_alpha: float | None = None,
    slices: Sequence[str] | None = None,
    known: Collection[str] = (),
    allow_pickle: bool = False,
) -> AdapterFile | NativeFile:
    """Read an adapter's files: PEFT's format, loralib's, or LoRA Lab's own.

    Nothing but data is read, every tensor is accounted for, and a checksum, where there is one, is
    compared. bfloat16 becomes float32.

    Args:
        path: a folder, PEFT's weights beside their adapter_config.json, or a file of loralib's,
            .safetensors, .pt or .bin. A file is PEFT's when an adapter_config.json lies beside it,
            unless `lora_alpha` is given.
        lora_alpha: α of a loralib file; only those that LoRA Lab wrote hold it themselves.
        slices: which of q, k and v loralib's MergedLinear adapts; its file does not say. By default
            the paper's q and v where two are adapted.
        known: paths of the base's modules: they decide what a name means that PEFT could have made
            (a "base_layer" at its end).
        allow_pickle: whether a pickle may be read, with `weights_only=True`; that needs torch.

    Raises:
        AdapterError: a file is missing, damaged, foreign, or changed after it was saved.
    """
    path = whole_folder(user_path(path, AdapterError))
    if slices and lora_alpha is None:
        raise AdapterError("slices are for loralib's files; give lora_alpha too, or leave them out")
    if lora_alpha is not None and not path.is_file():
        raise AdapterError(f"there is no file {path}; name loralib's own, or give no α")
    if (path / NATIVE_CONFIG_FILE).is_file():
        return read_native(path)
    if path.is_file() and (lora_alpha is not None or not (path.parent / CONFIG_FILE).exists()):
        return read_loralib(path, lora_alpha, slices=slices, allow_pickle=allow_pickle)
    settings = peft_settings(path.parent if path.is_file() else path)
    if (method := method_of_type(settings.get("peft_type"))) is not None:
        return read_method(path, method, settings, allow_pickle=allow_pickle)
    return read_peft(path, allow_pickle=allow_pickle, known=known)
