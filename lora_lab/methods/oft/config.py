"""OFT's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from lora_lab.errors import ConfigError
from lora_lab.methods.config import MOST, as_layers, as_names, need_count, need_positive, need_share
from lora_lab.methods.layer_config import LayerConfig
from lora_lab.methods.lora.peft_fields import takes_peft_fields


@takes_peft_fields
@dataclass(frozen=True)
class OFTConfig(LayerConfig):
    """OFT: W = W₀Rᵀ with R block-diagonal and orthogonal, or near to it (Qiu et al., 2023).

    R is Cayley's transform of skew-symmetric blocks Q, which are learned and start at zero.

    Attributes:
        r: blocks in every matrix; give it or `oft_block_size`, and 0 for the other.
        oft_block_size: features in a block. Where it, or r, does not divide a layer's inputs, the
            nearest number that does is taken there, as PEFT does, with a warning.
        module_dropout: share of the blocks that are the identity in a training step. PEFT 0.21 has
            the field and does nothing with it.
        target_modules: of a fused matrix all slices, since they read one input; see `LayerConfig`
            for this and the other fields that methods share.
        bias: PEFT's field; only "none" is supported.
        init_weights: True: Q zero, so that nothing changes; False: at random (for tests).
        layers_to_transform, layers_pattern: as in `LoraConfig`.
        coft: keep ‖Q‖_F of every block below eps/√blocks, so that R stays near to the identity.
        eps: see `coft`.
        block_share: one block for all of a matrix.
        use_cayley_neumann: the transform as a series, cut off: quicker, and not quite orthogonal.
            False: exact.
        num_cayley_neumann_terms: its terms, counted as PEFT counts them.
    """

    r: int = 0
    oft_block_size: int = 32
    module_dropout: float = 0.0
    bias: Literal["none"] = "none"
    init_weights: bool = True
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5

    peft_name: ClassVar = "OFT"
    told: ClassVar = frozenset({"target_modules"})

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = self.layers_to_transform
        numbers = as_layers("layers_to_transform", layers)
        object.__setattr__(self, "layers_to_transform", numbers)
        pattern = as_names("layers_pattern", self.layers_pattern)
        object.__setattr__(self, "layers_pattern", pattern)
        if self.layers_pattern and layers is None:
            raise ConfigError("layers_pattern says whose layers; give layers_to_transform too")
        need_count("r", self.r, least=0, most=MOST)
        need_count("oft_block_size", self.oft_block_size, least=0, most=MOST)
        if bool(self.r) == bool(self.oft_block_size):
            raise ConfigError(
                f"r is {self.r} and oft_block_size {self.oft_block_size}; give one of them, and 0 "
                "for the other: together they make up a layer's inputs"
            )
        need_share("module_dropout", self.module_dropout)
        need_positive("eps", self.eps)
        need_count("num_cayley_neumann_terms", self.num_cayley_neumann_terms, least=2, most=1_000)
        for name in ("init_weights", "coft", "block_share", "use_cayley_neumann"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name} is {value!r}; use True or False")
        if self.bias != "none":
            raise ConfigError(f"bias={self.bias!r} is not supported; set bias='none'")

    @property
    def method(self) -> str:
        """The paper's name."""
        return "OFT"


# What a file says of the model that it was made on; the tensors' names say which layers.
OF_THE_MODEL = (
    *(f.name for f in fields(LayerConfig)),
    *("layers_to_transform", "layers_pattern"),
)


def from_peft(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> OFTConfig:
    """Return the config of an adapter in PEFT's format.

    Args:
        settings: its adapter_config.json.
        shapes: {module path: shape of its blocks' entries}.

    Raises:
        ConfigError: it is of a PEFT that had another transform.
    """
    own = [f.name for f in fields(OFTConfig) if f.name not in OF_THE_MODEL]
    given = {name: settings[name] for name in own if settings.get(name) is not None}
    config = OFTConfig.from_dict(given | {"target_modules": tuple(shapes), "init_weights": True})
    version = str(settings.get("peft_version") or "0").partition("@")[0].split(".")
    if config.use_cayley_neumann and [int(n) for n in version[:2] if n.isdecimal()] < [0, 18]:
        raise ConfigError(
            "it was saved before PEFT 0.18, whose series for R was another one; merge it with the "
            "PEFT that made it, or train it again"
        )
    return config
