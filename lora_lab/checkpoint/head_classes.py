"""Which class is which output of a head that an adapter's file holds: classes.json beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from lora_lab.anatomy.heads import class_names, class_numbers, head_modules
from lora_lab.checkpoint.files import quoted, read_json
from lora_lab.errors import AdapterError
from lora_lab.methods.base import Adapter

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


def _some(names: Any) -> str:
    return ", ".join(quoted(name) for name in names[:4]) + (", …" if len(names) > 4 else "")
