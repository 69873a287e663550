"""Several methods trained together as one config, such as the paper's LoRA+PE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.registry import config_classes, method_of


class CombinedConfig(tuple[MethodConfig, ...], MethodConfig):
    """The configs of several methods on one model: the tuple of them, and itself a config."""

    @property
    def method(self) -> str:
        """The paper's name, such as "LoRA+PE".

        A classifier's head that is trained beside a method is named, but makes no combination.
        """
        methods = [method_of(config) for config in self]
        several = sum(bool(method.key) for method in methods) > 1
        names = zip(self, methods, strict=True)
        return "+".join((several and method.short) or own.method for own, method in names)

    @property
    def parts(self) -> tuple[MethodConfig, ...]:
        """The configs that are trained together."""
        return tuple(self)

    @property
    def tokens(self) -> int:
        """Learned tokens of all parts."""
        return sum(config.tokens for config in self)

    @property
    def needs_batches(self) -> bool:
        """Whether a part starts from data."""
        return any(config.needs_batches for config in self)

    def check_steps(self, total: int) -> None:
        """Refuse a training of so many optimizer steps that a part does not fit into."""
        for config in self:
            config.check_steps(total)

    def at_peak(self, total: int) -> Self:
        """Return the parts' configs whose first steps take the most memory."""
        return type(self)(config.at_peak(total) for config in self)

    def to_python(self) -> str:
        """Return the Python expression of the list that builds this."""
        return f"[{', '.join(config.to_python() for config in self)}]"


def as_config(given: MethodConfig | Sequence[MethodConfig]) -> MethodConfig:
    """Return a config of what users give: one, or a list of several that are combined.

    Raises:
        ConfigError: nothing, a list within a list, or what is no method's config.
    """
    parts = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not parts:
        raise ConfigError(
            "no method is given: the list of configs is empty; name at least one, such as "
            "LoraConfig()"
        )
    for part in parts:
        if isinstance(part, (list, tuple)):
            raise ConfigError("the list of configs holds a list; put all configs into one")
        if not isinstance(part, MethodConfig):
            known = ", ".join(config_classes())
            raise ConfigError(f"{type(part).__name__} is no method's config; use one of {known}")
    return parts[0] if len(parts) == 1 else CombinedConfig(parts)


def method_name(configs: MethodConfig | Sequence[MethodConfig]) -> str:
    """Return the paper's name of one config or of a combination, such as "LoRA+PE"."""
    return as_config(configs).method


def to_python(configs: MethodConfig | Sequence[MethodConfig]) -> str:
    """Return the Python expression that builds one config, or a list of several."""
    return as_config(configs).to_python()
