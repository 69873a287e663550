"""Methods' configs as plain values, as run files hold them: {"class": "LoraConfig", "r": 8, …}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.registry import config_classes, method_of


def method_to_dict(config: MethodConfig) -> dict[str, Any]:
    """Return a config as plain values, with its class."""
    return {"class": type(config).__name__, **config.to_dict()}


def method_from_dict(values: Any) -> MethodConfig:
    """Return the config that `method_to_dict` wrote, or that a person did.

    Raises:
        ConfigError: no mapping, a class that is no method's, or a field that it does not have.
    """
    known = config_classes()
    name = values.get("class") if isinstance(values, Mapping) else None
    if name not in known:
        what = f"names the class {str(name)[:60]!r}" if name else f"is {str(values)[:60]!r}"
        raise ConfigError(
            f"a method {what}, which is none of {', '.join(sorted(known))}; write it as "
            "{class: LoraConfig, r: 8}"
        )
    fields = {key: value for key, value in values.items() if key != "class"}
    try:
        config: MethodConfig = known[name].from_dict(fields)
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # a list for a number
        raise ConfigError(f"{name}: {error}") from None
    return config


def recorded_text(values: Mapping[str, Any], kind: Literal["setting", "size"]) -> str:
    """Return what a method tells of a recorded config; "" where the method is not known here.

    Args:
        values: as `method_to_dict` wrote them.
        kind: which of a `Method`'s texts; a title's own numbers where the method has none.
    """
    try:
        config = method_from_dict(values)
    except ConfigError:
        return ""
    method = method_of(config)
    return (getattr(method, kind) or method.title)(config)
