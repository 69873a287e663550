"""AdaLoRA's share of a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.cost import MASTER, MethodCost
from lora_lab.methods.lora.cost import PLAIN, rank_cost
from lora_lab.methods.lora.targets import all_linear_notes, ranks

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def adalora_cost(anatomy: Anatomy, config: AdaLoraConfig, price: dict[str, Any]) -> MethodCost:
    """Return the cost of P, Λ and Q of rank init_r; LoRA of the mean rank target_r is saved."""
    start = ranks(anatomy, config.at_start())
    for name in start:
        AdaLoraConfig.check_kind(anatomy.by_name[name].module, anatomy.by_name[name].kind)
    cost = rank_cost(price, start, PLAIN | {"dropout": config.lora_dropout > 0})
    for name, r in start.items():
        site = price["sites"][name]
        cost.train(site["row"], (r,))  # Λ
        cost.kept[site["row"]] += r * site["activations"]  # ΛQx beside Qx
    cost.state = 2 * MASTER * cost.parameters  # sensitivity and uncertainty of every number
    cost.checkpoint = config.target_r * sum(price["sites"][name]["checkpoint"] for name in start)
    cost.estimated = True
    cost.notes = (
        f"AdaLoRA starts at rank {config.init_r} and ends at mean rank {config.target_r}: memory "
        "is that of the start, the checkpoint that of the end, were every matrix of mean rank",
        *all_linear_notes(anatomy, config.at_start()),
    )
    return cost
