"""LoRA's entry in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_lab.methods.config import words
from lora_lab.methods.descriptor import Field, Method, register
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import config_from_ranks, ranks

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy

TARGETS = Field(
    "target_modules", "targets", 'roles or modules, or "all-linear"', tuple, "targets", painted=True
)
FACTORS = (
    Field("lora_alpha", "α", "ΔW is scaled by α / r", flag="alpha"),
    Field("lora_dropout", "dropout", "on the way into A, from 0 to below 1", flag="dropout"),
)

_PAINTED = (
    *("r", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern"),
    *("exclude_modules", "layers_to_transform", "layers_pattern"),
)


def _rank_fields(
    anatomy: Anatomy, painted: Mapping[str, int], config: LoraConfig
) -> dict[str, Any]:
    made = config_from_ranks(anatomy, painted, config)
    return {name: getattr(made, name) for name in _PAINTED}


register(
    Method(
        name="LoRA",
        key="lora",
        config=LoraConfig,
        adapter="lora_lab.methods.lora.adapter:LoraAdapter",
        cost="lora_lab.methods.lora.cost:lora_cost",
        fields=(
            Field("r", "r", "rank of every target, width of adapters", int, painted=True),
            TARGETS,
            *FACTORS,
        ),
        about="ΔW = α/r · BA on every painted matrix; W₀ stays as it is",
        setting=lambda config: f"r = {config.r}, {words(config.target_modules)}",
        size=lambda config: f"r {config.r}",
        rank="r",
        ranks=ranks,
        rank_fields=_rank_fields,
        peft_form=True,
        order=10,
    )
)
