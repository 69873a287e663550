"""The entries of Adapter^H, Adapter^L, Adapter^P and Adapter^D in the registry."""

from __future__ import annotations

from typing import Any

from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.descriptor import LEARNING_RATE, Field, Method, Plan, register

_WIDTH = Field("r", "bottleneck r", "width of the adapter layers", int)
_DROPPED = Field(
    "drop_layers",
    "drop layers",
    "of the lowest blocks, which answer without their adapters; by default 5, or all but one",
    int,
    automatic=True,
)


def _dropped(plan: Plan) -> dict[str, int]:
    return (
        {} if plan.blocks is None else {"drop_layers": BottleneckConfig("D").dropped(plan.blocks)}
    )


def _entry(variant: str, about: str, *fields: Field, **more: Any) -> Method:
    return Method(
        name=f"Adapter^{variant}",
        key=f"adapter-{variant.lower()}",
        config=BottleneckConfig,
        adapter="lora_lab.methods.bottleneck.adapter:BottleneckAdapter",
        cost="lora_lab.methods.bottleneck.cost:bottleneck_cost",
        fixed={"variant": variant},
        fields=(_WIDTH, *fields),
        about=about,
        numbers=lambda config: f"r {config.r}",
        setting=lambda config: f"r = {config.r}",
        rank="r",
        learning_rate=LEARNING_RATE / 2,
        rate_from="half of LoRA's, as in the paper's Table 12",
        small_rate=2e-2,
        no_ranks="puts layers of its own between the others",
        order=50,
        **more,
    )


register(
    _entry("H", "a bottleneck after attention and one after the MLP of every block"),
    _entry("L", "a bottleneck with a LayerNorm after the MLP of every block"),
    _entry("P", "a bottleneck after the MLP of every block"),
    _entry(
        "D",
        "as Adapter^P; the lowest blocks answer without theirs",
        _DROPPED,
        automatic=_dropped,
        sparse_gradients=True,  # a step leaves lower layers out as often as not
    ),
)
