"""PEFT's format of methods that are not LoRA: what `Method.peft` says of them.

One tensor a module, named "base_model.model.<module>.<key>", and modules that are trained whole. A
file of LoRA Lab's own holds its config in the metadata too: PEFT's settings do not tell which
slices of a fused matrix were the targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from lora_lab._util.json_files import parse_json
from lora_lab.checkpoint.checksum import CHECKSUM_KEY, checksum
from lora_lab.checkpoint.files import StoredTensor, check_settings, quoted, read_tensors
from lora_lab.checkpoint.native import NativeFile
from lora_lab.checkpoint.peft import base_name, weights_file
from lora_lab.checkpoint.schema import PeftSettings
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.descriptor import Method, PeftForm
from lora_lab.methods.registry import methods

CONFIG_KEY = "lora_lab_config"  # safetensors metadata
_LONGEST = 512  # characters of a tensor's name


@dataclass(frozen=True)
class PeftMethodFile(NativeFile):
    """An adapter of such a method, read.

    Attributes:
        tensors: {module path: what is learned there}.
        settings: its adapter_config.json.
        weights: {name as in the model's state dict: tensor} of modules trained whole.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, StoredTensor] = field(default_factory=dict)


def method_of_type(peft_type: object) -> Method | None:
    """Return the method that PEFT knows by this peft_type."""
    return next((m for m in methods().values() if m.peft and m.peft.type == peft_type), None)


def method_checksum(
    tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any], method: Method, config: str
) -> str:
    """Return the checksum of such a file's tensors and of the settings that they depend on."""
    names = ("peft_type", *(own.name for own in fields(cast(Any, method.config))))
    return checksum(tensors, [settings.get(name) or None for name in names], config)


def read_method(
    path: Path, method: Method, settings: dict[str, Any], *, allow_pickle: bool = False
) -> PeftMethodFile:
    """Read an adapter of a method that is not LoRA.

    Args:
        path: its folder, or the weights beside its adapter_config.json.
        method: that it is one of; it has a `PeftForm`.
        settings: its adapter_config.json.
        allow_pickle: as `read_adapter` takes it.

    Raises:
        AdapterError: a file is missing, damaged or foreign.
    """
    assert method.peft is not None
    check_settings(settings, path, PeftSettings)
    weights = path if path.is_file() else weights_file(path, allow_pickle)
    tensors, metadata = read_tensors(weights, allow_pickle=allow_pickle)
    learned, others = _sort(tensors, method.peft)
    if not learned:
        raise AdapterError(f"{weights} holds nothing of {method.name}; fetch the adapter again")
    stored = metadata.get(CONFIG_KEY, "")
    known = metadata.get(CHECKSUM_KEY)
    if known is not None and known != method_checksum(tensors, settings, method, stored):
        raise AdapterError(
            "the adapter's tensors or its adapter_config.json were changed after LoRA Lab had "
            "saved them; fetch or save the adapter again"
        )
    try:
        if known is not None and stored:
            config = method.config.from_dict(parse_json(stored.encode()))
        else:
            shapes = {module: tensor.shape for module, tensor in learned.items()}
            config = method.peft.config(settings, shapes)
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{path}: {error}") from None
    return PeftMethodFile(method.name, config, learned, (), settings, others)


def _sort(
    tensors: Mapping[str, StoredTensor], form: PeftForm
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Return {module path: what is learned there}, and the rest by its name in the model."""
    learned: dict[str, StoredTensor] = {}
    others: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        name = base_name(key)
        if len(name) > _LONGEST or not name.isprintable():
            raise AdapterError(f"tensor {quoted(key)} is no name of a module; fetch it again")
        if not name.endswith(form.key):
            others[name] = tensor
            continue
        numbers = tensor.numpy()
        if not np.issubdtype(numbers.dtype, np.floating) or not np.isfinite(numbers).all():
            raise AdapterError(
                f"tensor {quoted(key)} holds NaN or infinite values; fetch the adapter again"
            )
        learned[name.removesuffix(form.key)] = tensor
    return learned, others
