"""What a classifier's head adds to a training step: nothing that the paper counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.methods.config import unknown_module
from lora_lab.methods.cost import MethodCost
from lora_lab.methods.head.config import HeadConfig, head_names

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def head_cost(anatomy: Anatomy, config: HeadConfig, _price: dict[str, Any]) -> MethodCost:
    """Refuse a head that is not there; its parameters are not counted."""
    for name in head_names(config, anatomy.heads):
        inside = any(f".{name}." in f".{weight.name}" for weight in anatomy.weights)
        # A tied output layer's weight is known as the embedding's.
        if not inside and not anatomy.shape.tied_embeddings:
            top = dict.fromkeys(weight.name.split(".")[0] for weight in anatomy.weights)
            raise unknown_module(name, top)
    return MethodCost(notes=("the head is trained too; as in the paper it is not counted",))
