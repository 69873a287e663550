"""The anatomy of a config: of blocks that are all alike two are built, and the rest counted."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from lora_lab.anatomy import model_config, reader
from lora_lab.anatomy.blocks import Row, blocks_of
from lora_lab.anatomy.types import Anatomy

# Model types whose code was read: every block holds the same matrices. Building all 96 of GPT-3's
# takes a quarter of a second, two of them a few milliseconds.
_ALIKE = frozenset({"bert", "gpt2", "gpt_neox", "llama", "mistral", "opt", "qwen2", "roberta"})
_BUILT = 2  # the fewest that tell which number in a name is the block's


def read_config(config: Any) -> Anatomy:
    """Return the anatomy of a transformers config; no weight is made.

    Raises:
        ModelError: where transformers has no model for this config.
    """
    layers = getattr(config, "num_hidden_layers", 0)
    if getattr(config, "model_type", "") not in _ALIKE or layers <= _BUILT:
        return reader.read(model_config.build_on_meta(config))
    short = copy.deepcopy(config)
    if getattr(short, "layer_types", None):  # these name the attention mask, not other matrices
        short.layer_types = short.layer_types[:_BUILT]
    short.num_hidden_layers = _BUILT
    return _lengthen(reader.read(model_config.build_on_meta(short)), layers)


def _lengthen(short: Anatomy, layers: int) -> Anatomy:
    """Repeat the last block until there are `layers`."""
    here, last = short.blocks[-1].path, short.blocks[-1].row
    more = range(_BUILT, layers)

    def path(layer: int) -> str:
        return here.removesuffix(str(last.layer)) + str(layer)

    def renamed(text: str, layer: int) -> str:
        return path(layer) + text[len(here) :] if text.startswith(here) else text

    def repeated(parts: tuple[Any, ...], *fields: str) -> tuple[Any, ...]:
        block = [part for part in parts if part.layer == last.layer]
        end = parts.index(block[-1]) + 1
        new = [
            replace(part, layer=n, **{name: renamed(getattr(part, name), n) for name in fields})
            for n in more
            for part in block
        ]
        return (*parts[:end], *new, *parts[end:])

    weights = repeated(short.weights, "name")
    sites = repeated(short.sites, "name", "module", "input_group")
    return Anatomy(
        sites=sites,
        roles=short.roles,
        blocks=blocks_of(sites, {Row(last.stack, n): path(n) for n in range(layers)}),
        shape=replace(short.shape, num_layers=layers),
        parameters=sum(weight.size for weight in weights),
        weights=weights,
        others=short.others,
        heads=short.heads,
        tied=short.tied,
    )
