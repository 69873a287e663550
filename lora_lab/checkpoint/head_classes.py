"""Which class is which output of a head that an adapter's file holds: classes.json beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from lora_lab.anatomy.heads import class_names, class_numbers, head_modules
from lora_lab.checkpoint.adapter_file import AdapterFile
from lora_lab.checkpoint.files import StoredTensor, quoted, read_json
from lora_lab.checkpoint.native import NativeFile
from lora_lab.checkpoint.reader import read_adapter
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Adapter
from lora_lab.methods.own_tensors import own_tensors

CLASSES_FILE = "classes.json"  # the names by their numbers


def write_classes(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """Write the model's classes where the adapter has a head for them."""
    heads = tuple(f"{path}." for path in head_modules(model))
    names = class_names(getattr(model, "config", None))
    if names and heads and any(key.startswith(heads) for key in adapter.state()):
        text = json.dumps({"classes": names}) + "\n"
        (folder / CLASSES_FILE).write_text(text, encoding="utf-8")


def check_classes(model: nn.Module, folder: Path) -> None:
    """Refuse a model whose classes are others than the file's, or stand in another order.

    Raises:
        AdapterError: they do; a model or file without names is as it always was.
    """
    path, names = folder / CLASSES_FILE, class_names(getattr(model, "config", None))
    if not names or not path.is_file():
        return
    told: Any = read_json(path).get("classes")
    if not isinstance(told, list) or not all(isinstance(name, str) for name in told):
        raise AdapterError(f"{path} is no list of names; fetch the adapter again")
    if class_numbers(names, told) != {name: number for number, name in enumerate(told)}:
        raise AdapterError(
            f"the adapter's head has the classes {_some(told)}, in this order, and the model has "
            f"{_some(names)}; load the base with load_model(…, num_labels={len(told)}) or its own "
            "names in that order"
        )


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return how the names of a classifier's head begin in the model's state dict; () of others."""
    return tuple(f"{path}." for path in head_modules(model))


def other_head(model: nn.Module, folder: Path) -> str | None:
    """Say what another task the head in an adapter's folder is for; None: it is the model's.

    Args:
        model: that it would go onto.
        folder: see `whole_folder`.
    """
    heads = head_prefixes(model)
    if not heads:
        return None
    path, names = folder / CLASSES_FILE, class_names(getattr(model, "config", None))
    told: Any = read_json(path).get("classes") if path.is_file() else None
    if names and isinstance(told, list) and all(isinstance(name, str) for name in told):
        alike = len(names) == len(told) and class_numbers(names, told) is not None
        return None if alike else f"{len(told)} classes ({_some(told)})"
    own = dict(own_tensors(model))
    stored = dict(_head_tensors(read_adapter(folder), heads))
    if not stored:
        return "no classes"
    odd = [key for key, tensor in stored.items() if key in own and tensor.shape != own[key].shape]
    return f"{stored[odd[0]].shape[0]} outputs" if odd else None


def _head_tensors(
    file: AdapterFile | NativeFile, heads: tuple[str, ...]
) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(file, NativeFile):
        for part in file.parts:
            yield from _head_tensors(read_adapter(part), heads)
    stored = file.tensors if type(file) is NativeFile else file.weights  # type: ignore[union-attr]
    yield from ((key, tensor) for key, tensor in stored.items() if key.startswith(heads))


def without_head(
    file: AdapterFile | NativeFile, heads: tuple[str, ...]
) -> AdapterFile | NativeFile:
    """Return a file without the head that it holds."""

    def rest(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        return {key: tensor for key, tensor in stored.items() if not key.startswith(heads)}

    if type(file) is NativeFile:
        return replace(file, tensors=rest(file.tensors))
    held = cast(AdapterFile, file)  # or a method's that PEFT has: it has them too
    saved = held.settings.get("modules_to_save") or ()
    kept = [name for name in saved if not any(head[:-1].endswith(name) for head in heads)]
    settings = {**held.settings, "modules_to_save": kept or None}
    return replace(held, weights=rest(held.weights), settings=settings)


def _some(names: Any) -> str:
    return ", ".join(quoted(name) for name in names[:4]) + (", …" if len(names) > 4 else "")
