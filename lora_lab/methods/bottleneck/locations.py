"""Where adapter layers stand: behind attention, behind the MLP, behind the whole block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lora_lab.anatomy.roles import is_cross_attention
from lora_lab.anatomy.types import Anatomy, Row
from lora_lab.errors import ConfigError
from lora_lab.methods.bottleneck.config import BottleneckConfig


@dataclass(frozen=True)
class Place:
    """A module whose output an adapter layer reads.

    Attributes:
        words: what people read, and what a combination may claim once.
        path: the module's.
        module: gives a tensor (..., width), or a tuple or list of which that is the first.
        weight: one of its parameters in floating point.
        width: d.
        depth: the number of its block in its stack, from 0.
    """

    words: str
    path: str
    module: nn.Module
    weight: Tensor
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
    for row, block in _blocks(read).items():
        found = {"the MLP": block}
        if config.variant == "H":
            found = {"attention": _behind(model, read, row, block, "o")}
        if config.variant != "L":
            found["the MLP"] = _behind(model, read, row, block, "down")
        for what, path in found.items():
            if not path:
                raise ConfigError(
                    f"{config.method} finds no output of {what} of width {d} in layer "
                    f"{row.label}; use LoRA, which only needs the matrices"
                )
            module = model.get_submodule(path)
            words = f"the place after {what} of layer {row.label}"
            places.append(Place(words, path, module, _floating(module, model), d, row.layer))
    return places


_CHILDREN = {
    "o": ("attn", "attention"),
    "down": ("mlp", "ffn", "feed_forward", "feedforward", "moe"),
}


def _behind(model: nn.Module, read: Anatomy, row: Row, block: str, role: str) -> str:
    """Return the path of what makes a sublayer's output: its closing matrix, or all of it; "".

    A mixture of experts has no one closing matrix; its block's child is known by its name.
    """
    site = read.cell(row, role)
    if site is not None:
        whole = site.rows is None and site.out_features == read.shape.hidden_size
        return site.module if whole else ""
    found = [
        name
        for name, _ in model.get_submodule(block).named_children()
        if any(word in name.lower() for word in _CHILDREN[role])
        and "norm" not in name.lower()
        and not is_cross_attention((name,))
    ]
    return f"{block}.{found[0]}" if len(found) == 1 else ""


def _blocks(read: Anatomy) -> dict[Row, str]:
    """Return {row: path of its block}, from the bottom up."""
    modules = {(site.stack, site.layer): site.module for site in read.grid_sites}
    found = {}
    for row in read.rows:
        names = modules[row.stack, row.layer].split(".")
        found[row] = ".".join(names[: names.index(str(row.layer)) + 1])
    return found


def _floating(module: nn.Module, model: nn.Module) -> Tensor:
    """Return a parameter in floating point: the module's, or where it is packed the model's."""
    parameters = (p for part in (module, model) for p in part.parameters())
    return next(p for p in parameters if p.is_floating_point())
