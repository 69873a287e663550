"""IA3's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig


@dataclass(frozen=True)
class IA3Config(MethodConfig):
    """(IA)³: what keys, values and MLPs give on is scaled by learned vectors (Liu et al., 2022).

    Attributes:
        target_modules: as in `LoraConfig`; the paper's are keys, values and the MLP's last matrix.
        feedforward_modules: those of the targets whose input is scaled, not their output, named
            likewise; None: the targets with the role "down", as in the paper.
        fan_in_fan_out: PEFT's field; a layer tells itself how its weight is stored.
        modules_to_save: modules that are trained whole; see `LoraConfig`.
        init_ia3_weights: True: every number starts at 1, so that nothing changes; False: at random
            (for tests).
    """

    target_modules: Sequence[str] | str = ("k", "v", "down")
    feedforward_modules: Sequence[str] | str | None = None
    fan_in_fan_out: bool = False
    modules_to_save: Sequence[str] | None = None
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        for name in ("target_modules", "feedforward_modules", "modules_to_save"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if not self.target_modules:
            raise ConfigError('target_modules is empty; name at least one, such as ["k", "v"]')
        if isinstance(saved := self.modules_to_save, str):
            raise ConfigError(f"modules_to_save is {saved!r}; it must be a list: [{saved!r}]")
        if not saved:
            object.__setattr__(self, "modules_to_save", None)
        if self.init_ia3_weights not in (True, False):
            raise ConfigError(
                f"init_ia3_weights is {self.init_ia3_weights!r}; use True, or False for tests"
            )

    @property
    def method(self) -> str:
        """The paper's name."""
        return "IA3"


def from_peft(
    settings: Mapping[str, Any],  # noqa: ARG001
    shapes: Mapping[str, tuple[int, ...]],
) -> IA3Config:
    """Return the config of an adapter in PEFT's format.

    Args:
        settings: its adapter_config.json.
        shapes: {module path: its vector's shape}: (1, in) of those whose input is scaled.
    """
    scaled = [path for path, shape in shapes.items() if len(shape) == 2 and shape[1] != 1]
    return IA3Config(target_modules=tuple(shapes), feedforward_modules=scaled)
