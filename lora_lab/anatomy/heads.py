"""Which modules of a classifier are its head."""

from __future__ import annotations

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
