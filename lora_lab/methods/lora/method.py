"""LoRA's entry in the registry."""

from __future__ import annotations

from lora_lab.methods.descriptor import Field, Method, register
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import config_from_ranks, ranks

TARGETS = Field(
    "target_modules", "targets", 'roles or modules, or "all-linear"', tuple, "targets", painted=True
)
FACTORS = (
    Field("lora_alpha", "α", "ΔW is scaled by α / r", flag="alpha"),
    Field("lora_dropout", "dropout", "on the way into A, from 0 to below 1", flag="dropout"),
)


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
        rank="r",
        ranks=ranks,
        with_ranks=config_from_ranks,
        peft_form=True,
        order=10,
    )
)
