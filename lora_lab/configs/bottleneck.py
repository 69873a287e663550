"""Adapter layers: a bottleneck of width r inserted between a block's modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lora_lab.configs.base import Config, need_rank
from lora_lab.errors import ConfigError

Variant = Literal["H", "L", "P", "D"]


@dataclass(frozen=True)
class BottleneckConfig(Config):
    """Adapter layers x + W_up·f(W_down·x), both matrices with a bias (Hu et al., 2022, 5.1).

    Attributes:
        variant: "H" after attention and after the MLP (Houlsby et al., 2019); "L" after the MLP,
            with a LayerNorm of its own (Lin et al., 2020); "P" after the MLP (Pfeiffer et al.,
            2021); "D" as "P", with the lower layers' adapters dropped when it answers (Rücklé et
            al., 2020).
        r: width of the bottleneck.
    """

    variant: Variant = "H"
    r: int = 8

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            known = ", ".join(get_args(Variant))
            raise ConfigError(f"variant is {self.variant!r}; use one of {known}")
        need_rank("r", self.r)

    @property
    def method(self) -> str:
        """The paper's name."""
        return f"Adapter^{self.variant}"

    @property
    def layers_a_block(self) -> int:
        """How many adapter layers a block gets."""
        return 2 if self.variant == "H" else 1

    @property
    def layer_norm(self) -> bool:
        """Whether each adapter layer brings a trained LayerNorm."""
        return self.variant == "L"
