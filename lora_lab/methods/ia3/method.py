"""IA3's entry in the registry."""

from __future__ import annotations

from lora_lab.methods.descriptor import Field, Method, PeftForm, register
from lora_lab.methods.ia3.config import IA3Config, from_peft
from lora_lab.methods.lora.method import MODULES_TO_SAVE

register(
    Method(
        name="IA3",
        key="ia3",
        config=IA3Config,
        adapter="lora_lab.methods.ia3.adapter:IA3Adapter",
        cost="lora_lab.methods.ia3.cost:ia3_cost",
        fields=(
            Field(
                "target_modules", "targets", 'roles or modules, or "all-linear"', tuple, "targets"
            ),
            Field(
                "feedforward_modules",
                "scaled inputs",
                'targets whose input is scaled, not their output; by default those called "down"',
                tuple,
                automatic=True,
            ),
            MODULES_TO_SAVE,
        ),
        about="what keys, values and MLPs give on is scaled by learned numbers",
        no_ranks="learns one number a feature; its ΔW has full rank",
        learning_rate=5e-3,
        rate_from="the best of three in PEFT's comparison on MetaMathQA",
        peft=PeftForm("IA3", ".ia3_l", from_peft),
        order=25,
    )
)
