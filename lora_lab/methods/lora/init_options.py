"""The settings of initializations that have some: LoraConfig's `eva_config` and `corda_config`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lora_lab.errors import ConfigError
from lora_lab.methods.config import Config
from lora_lab.methods.lora.corda import CordaConfig
from lora_lab.methods.lora.eva import EvaConfig

OPTIONS: dict[str, type[Config]] = {"eva_config": EvaConfig, "corda_config": CordaConfig}


def options_of(name: str, given: Mapping[str, Any] | None) -> Any:
    """Return the settings of a field of `LoraConfig`."""
    return OPTIONS[name].from_dict(given or {})


def as_mapping(name: str, given: Any, asked: bool) -> dict[str, Any] | None:
    """Return settings as the config keeps them: those that are not the default.

    Args:
        name: the field.
        given: a mapping, our dataclass or PEFT's.
        asked: whether `init_lora_weights` is the one that they are for; else they are left out,
            with a warning, as in PEFT.

    Raises:
        ConfigError: a field that there is not, or a value that it cannot have.
    """
    if given is None:
        return None
    if not asked:
        init = name.removesuffix("_config")
        warnings.warn(f"{name} has no effect: it is for init_lora_weights={init!r}", stacklevel=5)
        return None
    values = given if isinstance(given, Mapping) else getattr(given, "__dict__", None)
    if values is None:
        raise ConfigError(f"{name} is {given!r}; give a mapping, or {OPTIONS[name].__name__}")
    default = OPTIONS[name]().to_dict()
    found = OPTIONS[name].from_dict(values).to_dict()
    return {key: value for key, value in found.items() if value != default[key]}
