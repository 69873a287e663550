"""IA3's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lora_lab.errors import ConfigError
from lora_lab.methods.config import as_names
from lora_lab.methods.layer_config import LayerConfig
from lora_lab.methods.lora.peft_fields import takes_peft_fields


@takes_peft_fields
@dataclass(frozen=True)
class IA3Config(LayerConfig):
    """(IA)³: what keys, values and MLPs give on is scaled by learned vectors (Liu et al., 2022).

    Attributes:
        target_modules: the paper's are keys, values and the MLP's last matrix; see `LayerConfig`
            for this and the other fields that methods share.
        feedforward_modules: those of the targets whose input is scaled, not their output, named
            likewise; None: the targets with the role "down", as in the paper.
        init_ia3_weights: True: every number starts at 1, so that nothing changes; False: at random
            (for tests).
    """

    target_modules: Sequence[str] | str = ("k", "v", "down")
    feedforward_modules: Sequence[str] | str | None = None
    init_ia3_weights: bool = True

    peft_name: ClassVar = "IA3"
    told: ClassVar = frozenset({"target_modules"})

    def __post_init__(self) -> None:
        super().__post_init__()
        scaled = as_names("feedforward_modules", self.feedforward_modules)
        object.__setattr__(self, "feedforward_modules", scaled)
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
