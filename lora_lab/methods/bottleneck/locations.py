"""Where adapter layers stand: behind attention, behind the MLP, behind the whole block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lora_lab._util.devices import device_of
from lora_lab.anatomy.blocks import Block
from lora_lab.anatomy.roles import is_cross_attention
from lora_lab.anatomy.types import Anatomy
from lora_lab.anatomy.wrappers import module_at
from lora_lab.errors import ConfigError
from lora_lab.methods.bottleneck.config import BottleneckConfig


@dataclass(frozen=True)
class Place:
    """A module whose output an adapter layer reads.

    Attributes:
        words: what people read, and what a combination may claim once.
        path: the module's.
        module: gives a tensor (..., width), or a tuple or list of which that is the first.
        dtype: of a parameter in floating point: its own, or where it is packed the model's.
        device: that it computes on.
        width: d.
        depth: the number of its block in its stack, from 0.
    """

    words: str
    path: str
    module: nn.Module
    dtype: torch.dtype
    device: torch.device
    width: int
    depth: int


def find_places(model: nn.Module, read: Anatomy, config: BottleneckConfig) -> list[Place]:
    """Return the places of a config on a model, from the bottom up.

    Args:
        model: the model.
        read: its anatomy.
        config: which places, and how wide the layers there are.

    Raises:
        ConfigError: the model's width is not known, r is above it, or a block has no such place.
    """
    d = read.shape.hidden_size
    if not d or not read.rows:
        raise ConfigError(
            f"{config.method} needs the width of the model's blocks, and its config does not tell; "
            "use LoRA, which only needs the matrices"
        )
    if config.r > d:
        raise ConfigError(f"r is {config.r} and the model is {d} wide; use an r of at most {d}")
    places = []
    for block in read.blocks:
        found = {"the MLP": block.path}
        if config.variant == "H":
            found = {"attention": _behind(model, d, block, "o")}
        if config.variant != "L":
            found["the MLP"] = _behind(model, d, block, "down")
        for what, path in found.items():
            if not path:
                raise ConfigError(
                    f"{config.method} finds no output of {what} of width {d} in layer "
                    f"{block.row.label}; use LoRA, which only needs the matrices"
                )
            module = module_at(model, path)
            words = f"the place after {what} of layer {block.row.label}"
            kind = _dtype(module, model), device_of(module)
            places.append(Place(words, path, module, *kind, d, block.row.layer))
    return places


_CHILDREN = {
    "o": ("attn", "attention"),
    "down": ("mlp", "ffn", "feed_forward", "feedforward", "moe"),
}


def _behind(model: nn.Module, width: int, block: Block, role: str) -> str:
    """Return the path of what makes a sublayer's output: its closing matrix, or all of it; "".

    A mixture of experts has no one closing matrix; its block's child is known by its name.
    """
    site = block.roles.get(role)
    if site is not None:
        whole = site.rows is None and site.out_features == width
        return site.module if whole else ""
    found = [
        name
        for name, _ in module_at(model, block.path).named_children()
        if any(word in name.lower() for word in _CHILDREN[role])
        and "norm" not in name.lower()
        and not is_cross_attention((name,))
    ]
    return f"{block.path}.{found[0]}" if len(found) == 1 else ""


def _dtype(module: nn.Module, model: nn.Module) -> torch.dtype:
    parameters = (p for part in (module, model) for p in part.parameters())
    return next(p.dtype for p in parameters if p.is_floating_point())
