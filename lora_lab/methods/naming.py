"""The paper's names of methods and of their combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SHORT = {"PreEmbed": "PE", "PreLayer": "PL"}  # as the paper writes its combinations


def method_name(configs: Sequence[Any]) -> str:
    """Return the paper's name of one config or of a combination, such as "LoRA+PE".

    A classifier's head that is trained beside a method is named, but makes no combination of it.
    """
    names = [config.method for config in configs]
    if len(names) - names.count("Head") > 1:
        names = [_SHORT.get(name, name) for name in names]
    return "+".join(names)


def to_python(configs: Sequence[Any]) -> str:
    """Return the Python expression that builds one config, or a list of several."""
    each = [config.to_python() for config in configs]
    return each[0] if len(each) == 1 else f"[{', '.join(each)}]"
