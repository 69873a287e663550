"""Which modules of a classifier are its head, and which class is which of its outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lora_lab.anatomy.children import ADDED
from lora_lab.anatomy.wrappers import children_within


def is_classifier(model: nn.Module) -> bool:
    """Return whether a model puts texts into classes: a …ForSequenceClassification."""
    return any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).mro())


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the modules of a classifier outside of the model that reads the text; () of others.

    They are BERT's "classifier", a decoder's "score", DeBERTa's "pooler" and "classifier".
    """
    if not is_classifier(model):
        return ()
    backbone = getattr(model, "base_model_prefix", "")
    return tuple(
        name
        for name, child in children_within(model)
        if name != backbone and name not in ADDED and any(True for _ in child.parameters())
    )


_NUMBERED = re.compile(r"(?:label[\s_-]*)?(\d+)", re.IGNORECASE)  # LABEL_0: transformers' for none


def class_names(config: Any) -> tuple[str, ...]:
    """Return what a model calls its classes, by their numbers; () where it has no names for them.

    Args:
        config: a transformers config; its id2label speaks first, then label2id.
    """
    by_number: Mapping[Any, Any] = getattr(config, "id2label", None) or {}
    by_name: Mapping[Any, Any] = getattr(config, "label2id", None) or {}
    for pairs in (by_number.items(), ((number, name) for name, number in by_name.items())):
        try:
            named = {int(number): str(name) for number, name in pairs}
        except (TypeError, ValueError):
            continue
        names = tuple(named.get(number, "") for number in range(len(by_number)))
        each = all(names) and len(set(names)) == len(names) == len(named)
        if each and list(map(_number, names)) != list(range(len(names))):
            return names
    return ()


def class_numbers(names: Sequence[str], labels: Sequence[str]) -> dict[str, int] | None:
    """Return {label: its number in the model}; None where the labels are other classes.

    "Not-Entailment" is "not_entailment"; "0", "1", … and "LABEL_0", … are the numbers themselves.

    Args:
        names: the model's, by their numbers; () where it has none.
        labels: somebody's, each once.
    """
    if names and len(names) != len(labels):
        return None
    for alike in (str, _folded):
        own = {alike(name): number for number, name in enumerate(names)}
        asked = {label: alike(label) for label in labels}
        if len(own) == len(labels) and set(own) == set(asked.values()):
            return {label: own[name] for label, name in asked.items()}
    numbers = {label: _number(label) for label in labels}
    return numbers if sorted(numbers.values()) == list(range(len(labels))) else None


def _number(name: str) -> int:
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else -1


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
