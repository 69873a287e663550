"""Layers as an axis of a sweep: the same targets, but only in some of the blocks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_lab.errors import ConfigError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.registry import method_of

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy

ALL = "all"


def read_layers(value: object, anatomy: Anatomy) -> str:
    """Return "0-14", "3" or "all" as it was typed: first and last layer, both included.

    Args:
        value: text, or a single layer as a number.
        anatomy: of the model. Where it has two stacks, each one's layers are counted from 0.

    Raises:
        ConfigError: what is no range, or none of the model's.
    """
    last = max((site.layer for site in anatomy.sites if site.layer is not None), default=0)
    typed = str(value)
    text = typed.replace("–", "-").replace(" ", "")
    if text == ALL:
        return text
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?", text):
        raise ConfigError(f"layers: {typed[:40]!r}; write 0-{last}, a single one, or all")
    low, high = _ends(text)
    if not low <= high <= last:
        raise ConfigError(f"layers: {text} is not there; the model has 0 to {last}")
    return text


def has_targets(config: MethodConfig) -> bool:
    """Return whether there are targets that layers could choose from."""
    return any(method_of(part).ranks for part in config.parts)


def in_layers(config: MethodConfig, layers: str, anatomy: Anatomy) -> MethodConfig:
    """Return the config with those targets alone that lie in these layers.

    Ranks and α stay what they are there. In a combination, the parts without targets stay whole.

    Args:
        config: with targets.
        layers: as `read_layers` returns it.
        anatomy: of the model.

    Raises:
        ConfigError: none of the targets lies there.
    """
    if layers == ALL:
        return config
    return as_config([_in(part, layers, anatomy) for part in config.parts])


def _in(config: MethodConfig, layers: str, anatomy: Anatomy) -> MethodConfig:
    method = method_of(config)
    if method.ranks is None or method.rank_fields is None:
        return config
    low, high = _ends(layers)
    here = {
        name: r
        for name, r in method.ranks(anatomy, config).items()
        if (layer := anatomy.by_name[name].layer) is not None and low <= layer <= high
    }
    if not here:
        raise ConfigError(f"layers: no target lies in {layers}; name other layers or targets")
    return config.replace(**method.rank_fields(anatomy, here, config))


def _ends(layers: str) -> tuple[int, int]:
    low, _, high = layers.partition("-")
    return int(low), int(high or low)
