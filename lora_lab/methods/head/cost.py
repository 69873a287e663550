"""What a classifier's head adds to a training step: its copy, which is trained whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.methods.config import unknown_module
from lora_lab.methods.cost import MethodCost, train_whole_modules
from lora_lab.methods.head.config import HeadConfig, head_names

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def head_cost(anatomy: Anatomy, config: HeadConfig, _price: dict[str, Any]) -> MethodCost:
    """Return the cost of a head, or of the modules that are named; refuse what is not there."""
    names = head_names(config, anatomy.heads)
    for name in names:
        inside = any(f".{name}." in f".{weight.name}" for weight in anatomy.weights)
        # A tied output layer's weight is known as the embedding's.
        if not inside and not anatomy.shape.tied_embeddings:
            top = dict.fromkeys(weight.name.split(".")[0] for weight in anatomy.weights)
            raise unknown_module(name, top)
    cost = MethodCost()
    train_whole_modules(cost, anatomy, names)
    return cost
