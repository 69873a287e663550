"""Tokens' vectors in a file of PEFT's: trainable_token_indices and what was learned of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lora_lab.anatomy.api import input_embedding
from lora_lab.anatomy.wrappers import modules_within
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.files import quoted
from lora_lab.errors import AdapterError
from lora_lab.methods.lora.token_rows import KEY

Tokens = Mapping[str, Sequence[int]]


def take_tokens(
    file: AdapterFile, model: nn.Module
) -> tuple[AdapterFile, dict[str, Tensor], Tokens | None]:
    """Return a file without tokens' vectors, these by their names in it, and whose they are.

    Raises:
        AdapterError: settings and tensors do not go together, or are for another base.
    """
    tensors = {k: t.torch() for k, t in file.weights.items() if k.endswith(f".{KEY}")}
    said: Any = file.settings.get("trainable_token_indices")
    if not said and not tensors:
        return file, {}, None
    by_path = dict(modules_within(model))
    if isinstance(said, list):
        table = input_embedding(model)
        said = {path: said for path, module in by_path.items() if module is table}
    found: dict[str, Sequence[int]] = {}
    for key, rows in tensors.items():
        path = key.removesuffix(f".{KEY}")
        names = [n for n in _names(said) if path == n or path.endswith(f".{n}")]
        tokens = said[names[0]] if names else None
        table = by_path.get(path)
        if not isinstance(tokens, list) or not all(type(t) is int and t >= 0 for t in tokens):
            raise AdapterError(f"trainable_token_indices has no tokens of {quoted(path)}")
        if not isinstance(table, nn.Embedding) or max(tokens, default=0) >= table.num_embeddings:
            raise AdapterError(
                f"the adapter is for another base: {quoted(path)} has no {max(tokens)} here; call "
                "model.resize_token_embeddings(...) first"
            )
        if rows.shape != (len(tokens), table.embedding_dim) or not rows.isfinite().all():
            raise AdapterError(
                f"tensor {quoted(key)} is not {len(tokens)} finite vectors; fetch the adapter again"
            )
        found[path] = tokens
    if not found:
        raise AdapterError("trainable_token_indices has no tensor in the file; fetch it again")
    rest = {key: tensor for key, tensor in file.weights.items() if key not in tensors}
    return replace(file, weights=rest), tensors, found


def _names(said: Any) -> list[str]:
    return [name for name in said if isinstance(name, str)] if isinstance(said, dict) else []
