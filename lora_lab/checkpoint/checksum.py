"""What tells a file of ours that was changed after it was saved, by a bad disk or by hand.

A flipped bit in a factor is a number like any other: only a checksum shows it. Files of other
makers have none, and those that another tool writes anew lose it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lora_lab.checkpoint.adapter_file import SLICES_KEY
from lora_lab.checkpoint.files import StoredTensor
from lora_lab.errors import AdapterError

CHECKSUM_KEY = "lora_lab_sha256"  # safetensors metadata
# The fields that the adapted model's outputs depend on.
_FIELDS = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"),
    *("modules_to_save", "init_lora_weights", "bias", "ensure_weight_tying"),
)


def adapter_checksum(
    tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any], metadata: Mapping[str, str]
) -> str:
    """Return the checksum of an adapter's tensors and of the settings that they depend on."""
    values = [_plain(settings.get(field) or None) for field in _FIELDS]
    values += [settings["target_parameters"]] if settings.get("target_parameters") else []
    # Tokens are whole numbers in every JSON, and in a hostile file anything.
    tokens = settings.get("trainable_token_indices")
    values += [tokens] if tokens else []
    return checksum(tensors, values, metadata.get(SLICES_KEY, ""))


def checksum(tensors: Mapping[str, StoredTensor], *settings: Any) -> str:
    """Return the SHA-256 of settings and of tensors: their names, dtypes, shapes and bytes."""
    named = sorted(tensors.items())
    shapes = [(key, f"torch.{t.dtype}", list(t.shape)) for key, t in named]
    head = json.dumps([settings[0], shapes, *settings[1:]], sort_keys=True)
    digest = hashlib.sha256(head.encode("utf-8", "surrogatepass"))
    for _, tensor in named:
        digest.update(tensor.data.data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return a setting as every writer of JSON has it: 16 and 16.0 are one number."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def verify_checksum(
    tensors: Mapping[str, StoredTensor], settings: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Raise if a file has a checksum that is not that of what it holds.

    One without is read as any maker's file: an early LoRA Lab's, or one that was written anew.

    Raises:
        AdapterError: it was changed after it was saved.
    """
    known = metadata.get(CHECKSUM_KEY)
    if known is not None and known != adapter_checksum(tensors, settings, metadata):
        raise AdapterError(
            "the adapter's tensors or its adapter_config.json were changed after LoRA Lab had "
            "saved them; fetch or save the adapter again"
        )
