"""The entries of FT, FT-TopN and BitFit in the registry."""

from __future__ import annotations

from typing import Any

from lora_lab.methods.descriptor import LEARNING_RATE, Field, Method, register
from lora_lab.methods.full.config import BitFitConfig, FullConfig

_ADAPTER = "lora_lab.methods.full.adapter:FullAdapter"
_RATE: dict[str, Any] = {
    "learning_rate": LEARNING_RATE / 40,
    "rate_from": "LoRA's / 40, as in the paper's Table 12",
    "small_rate": 2e-3,
}


def _about_top(config: FullConfig) -> str:
    blocks = "block" if config.top_layers == 1 else f"{config.top_layers} blocks"
    return f"all weights of the last {blocks} are trained"


register(
    Method(
        name="FT",
        key="ft",
        config=FullConfig,
        adapter=_ADAPTER,
        cost="lora_lab.methods.full.cost:top_layers_cost",
        fixed={"top_layers": None},
        about="every weight of the model is trained",
        no_ranks="trains every weight",
        trains_everything=True,
        sparse_gradients=True,
        order=30,
        **_RATE,
    ),
    Method(
        name="FT-Top2",
        key="ft-top2",
        config=FullConfig,
        adapter=_ADAPTER,
        cost="lora_lab.methods.full.cost:top_layers_cost",
        fields=(
            Field(
                "top_layers",
                "top blocks",
                "how many of the last blocks are trained",
                int,
                default=2,
            ),
        ),
        about=_about_top,
        numbers=lambda _config: "",  # the name has it
        no_ranks="trains the last blocks whole",
        sparse_gradients=True,
        order=30,
        **_RATE,
    ),
    Method(
        name="BitFit",
        key="bitfit",
        config=BitFitConfig,
        adapter=_ADAPTER,
        cost="lora_lab.methods.full.cost:bitfit_cost",
        fields=(
            Field(
                "new_biases",
                "new zero biases",
                "give linear layers without a bias a new one of zeros",
                bool,
            ),
        ),
        about="the bias vectors are trained, nothing else",
        setting=lambda config: "new biases" if config.new_biases else "",
        no_ranks="trains bias vectors",
        learning_rate=8 * LEARNING_RATE,
        rate_from="8 × LoRA's, as in the paper's Table 12",
        small_rate=1e-1,
        sparse_gradients=True,
        order=30,
    ),
)
