"""Which configs a run of classes trains: a method's, and the head beside it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from lora_lab.methods.config import MethodConfig
from lora_lab.methods.head.config import HeadConfig
from lora_lab.methods.registry import method_of


def with_heads(names: Sequence[str], configs: Sequence[MethodConfig]) -> tuple[MethodConfig, ...]:
    """Return configs that train a classifier's head too, if they do not already.

    The first LoRA gets it among its `modules_to_save`, as PEFT does it; without one a `HeadConfig`
    goes behind. Full fine-tuning has it anyway.

    Args:
        names: the head's modules, as `head_modules` or `Anatomy.heads` has them; () of a model
            without one.
        configs: of the methods.
    """
    trained = any(
        isinstance(own, HeadConfig) or method_of(own).trains_everything for own in configs
    )
    if trained or not names:
        return tuple(configs)
    first = next((i for i, own in enumerate(configs) if hasattr(own, "modules_to_save")), None)
    if first is None:
        return (*configs, HeadConfig())
    lora: Any = configs[first]
    saved = tuple(dict.fromkeys(itertools.chain(lora.modules_to_save or (), names)))
    return (*configs[:first], lora.replace(modules_to_save=saved), *configs[first + 1 :])
