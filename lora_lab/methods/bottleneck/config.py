"""Adapter layers: a bottleneck of width r inserted between a block's modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MethodConfig, need_count, need_rank

Variant = Literal["H", "L", "P", "D"]

_DROPPED = 5  # of BERT-base's 12 (Rücklé et al., 2020)


@dataclass(frozen=True)
class BottleneckConfig(MethodConfig):
    """Adapter layers x + W_up·f(W_down·x), both matrices with a bias (Hu et al., 2022, 5.1).

    Attributes:
        variant: "H" after attention and after the MLP (Houlsby et al., 2019); "L" after the MLP,
            with a LayerNorm of its own (Lin et al., 2020); "P" after the MLP (Pfeiffer et al.,
            2021); "D" as "P", with the lower layers' adapters dropped when it answers (Rücklé et
            al., 2020).
        r: width of the bottleneck.
        drop_layers: only for "D": how many of the lowest blocks of every stack answer without
            their adapters; None: 5, or all but one where a stack has fewer than 6.
    """

    variant: Variant = "H"
    r: int = 8
    drop_layers: int | None = None

    told: ClassVar = frozenset({"variant", "r"})

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            known = ", ".join(get_args(Variant))
            raise ConfigError(f"variant is {self.variant!r}; use one of {known}")
        need_rank("r", self.r)
        if self.drop_layers is None:
            return
        if self.variant != "D":
            raise ConfigError(
                "drop_layers is for variant 'D' (AdapterDrop); leave it out of variant "
                f"{self.variant!r}"
            )
        need_count("drop_layers", self.drop_layers, least=0)

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

    def dropped(self, blocks: int) -> int:
        """Return how many of the lowest blocks answer without their adapters.

        Args:
            blocks: of the model's shortest stack.

        Raises:
            ConfigError: no adapter would be left there.
        """
        if self.variant != "D":
            return 0
        most = blocks - 1
        if self.drop_layers is None:
            return min(_DROPPED, most)
        if self.drop_layers > most:
            raise ConfigError(
                f"drop_layers is {self.drop_layers} and the model has {blocks} blocks; use a "
                f"drop_layers of at most {most}"
            )
        return self.drop_layers
