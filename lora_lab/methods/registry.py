"""The methods that there are: found in the folders beside this file, none is listed by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lora_lab.errors import ConfigError
from lora_lab.methods.descriptor import METHODS, Method

for _file in sorted(Path(__file__).parent.glob("*/method.py")):
    importlib.import_module(f"lora_lab.methods.{_file.parent.name}.method")


def methods() -> dict[str, Method]:
    """Return {name: method}, as lists show them; those that are only used beside others too."""
    return {m.name: m for m in sorted(METHODS.values(), key=lambda method: method.order)}


def offered() -> dict[str, Method]:
    """Return {name: method} of those that people choose from."""
    return {name: method for name, method in methods().items() if method.key}


def method_of(config: Any) -> Method:
    """Return the method of a config.

    Raises:
        ConfigError: what is no config of one method.
    """
    for method in methods().values():
        if method.serves(config):
            return method
    raise ConfigError(
        f"{type(config).__name__} is no method's config; use one of {', '.join(config_classes())}"
    )


def config_classes() -> dict[str, type[Any]]:
    """Return {name: class} of every method's config."""
    classes = {method.config for method in METHODS.values()}
    return {kind.__name__: kind for kind in sorted(classes, key=lambda kind: kind.__name__)}
