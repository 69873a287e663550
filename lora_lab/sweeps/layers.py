"""Layers as an axis of a sweep: the same targets, but only in some of the blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_lab.configs import MethodConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import config_from_ranks, ranks

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


def in_layers(
    configs: Sequence[MethodConfig], layers: str, anatomy: Anatomy
) -> tuple[MethodConfig, ...]:
    """Return the configs with those targets alone that lie in these layers.

    Ranks and α stay what they are there. In a combination, the parts without targets stay whole.

    Args:
        configs: of one method.
        layers: as `read_layers` returns it.
        anatomy: of the model.

    Raises:
        ConfigError: a method that has no targets, or none of them lies there.
    """
    if not any(isinstance(config, (LoraConfig, AdaLoraConfig)) for config in configs):
        names = ", ".join(type(config).__name__ for config in configs)
        raise ConfigError(f"layers: {names} has no target_modules to choose from; leave layers out")
    return tuple(configs) if layers == ALL else tuple(_in(c, layers, anatomy) for c in configs)


def _in(config: MethodConfig, layers: str, anatomy: Anatomy) -> MethodConfig:
    if not isinstance(config, (LoraConfig, AdaLoraConfig)):
        return config
    start = config if isinstance(config, LoraConfig) else config.at_start()
    low, high = _ends(layers)
    here = {
        name: r
        for name, r in ranks(anatomy, start).items()
        if (layer := anatomy.by_name[name].layer) is not None and low <= layer <= high
    }
    if not here:
        raise ConfigError(f"layers: no target lies in {layers}; name other layers or targets")
    found = config_from_ranks(anatomy, here, start)
    if isinstance(config, LoraConfig):
        return found
    return config.replace(target_modules=found.target_modules)


def _ends(layers: str) -> tuple[int, int]:
    low, _, high = layers.partition("-")
    return int(low), int(high or low)
