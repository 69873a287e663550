"""Learned modules that a method keeps in the model, so that they move and are counted with it."""

from __future__ import annotations

from torch import nn

from lora_lab._util.torch_private import children_of
from lora_lab.anatomy.children import LEARNED_CHILD


def add_submodule(parent: nn.Module, name: str, learned: nn.Module) -> None:
    """Make what the adapter `name` learns a part of a module of the model."""
    learned.train(parent.training)
    if LEARNED_CHILD not in children_of(parent):
        parent.add_module(LEARNED_CHILD, nn.Module())
    # Not an nn.ModuleDict: adapters may be called "keys" or "update".
    children_of(parent.get_submodule(LEARNED_CHILD))[name] = learned


def remove_submodule(parent: nn.Module, name: str) -> None:
    """Take it off again; with the last one gone, the module is as it was. Twice is no error."""
    if LEARNED_CHILD not in children_of(parent):
        return
    held = children_of(parent.get_submodule(LEARNED_CHILD))
    held.pop(name, None)
    if not held:
        delattr(parent, LEARNED_CHILD)
