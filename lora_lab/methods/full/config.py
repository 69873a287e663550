"""Methods that train the model's own parameters: all, the last blocks, the bias vectors."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab.methods.config import MethodConfig, need_count


@dataclass(frozen=True)
class FullConfig(MethodConfig):
    """Full fine-tuning (FT), or that of the last blocks alone (FT-Top2).

    Attributes:
        top_layers: how many of the last blocks are trained, the rest frozen; None: all parameters.
    """

    top_layers: int | None = None

    def __post_init__(self) -> None:
        if self.top_layers is not None:
            need_count("top_layers", self.top_layers, least=1)

    @property
    def method(self) -> str:
        """The paper's name."""
        return "FT" if self.top_layers is None else f"FT-Top{self.top_layers}"


@dataclass(frozen=True)
class BitFitConfig(MethodConfig):
    """BitFit: the bias vectors of the model are trained, nothing else (Zaken et al., 2022).

    Attributes:
        new_biases: give linear layers that have no bias a new one of zeros; without it a model
            that has no biases (Llama) is refused.
    """

    new_biases: bool = False

    @property
    def method(self) -> str:
        """The paper's name."""
        return "BitFit"
