"""What FT-TopN and BitFit add to a training step; all of FT is in the price table.

Counts are those of Hu et al. (2022), section 5.1: d is the width of the residual stream, L the
number of blocks. Heads are not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.methods.cost import STAGES_A_BLOCK, MethodCost, row_number, train_biases
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.full.trained_weights import missing_biases, trained_weights

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def top_layers_cost(anatomy: Anatomy, config: FullConfig, price: dict[str, Any]) -> MethodCost:
    """Return the cost of the last n blocks, with all in them; FT-Top2 of a GPT: 2(12d² + 13d)."""
    assert config.top_layers is not None, "full fine-tuning of everything is in the price table"
    weights = trained_weights(anatomy, config)
    index = anatomy.row_index
    start = (layers := len(anatomy.rows)) - config.top_layers
    # A block's first norm keeps its input for its own weight; RMSNorm keeps the product instead.
    first = start * STAGES_A_BLOCK - (not anatomy.shape.block.rms_norm)
    cost, sizes = MethodCost(first=first), anatomy.sizes(price["dtype"])
    for weight in weights:
        size = sizes.get(weight.name, price["element"])  # a packed one's once it is unpacked
        cost.train(row_number(weight, index), weight.shape, new=False, element=size)
        cost.conflicts.add(weight.name)
    for site in (site for block in anatomy.blocks[start:] for site in block.roles.values()):
        own = price["sites"][site.name]
        cost.live_inputs.add(own["group"])
        cost.conflicts.add(site.name)
        if own.get("again"):  # by the time that the product is walked back, its gradient is there
            cost.freed[own["row"]] -= own["in"] * own["out"] * own["element"]
    for row in range(start, layers):
        cost.kept[row] += price["rows"][row]["normed"]
    return cost


def bitfit_cost(anatomy: Anatomy, config: BitFitConfig, price: dict[str, Any]) -> MethodCost:
    """Return the cost of the backbone's bias vectors; 11Ld and the last norm's d in a GPT."""
    cost = MethodCost()
    train_biases(cost, anatomy, trained_weights(anatomy, config), price)
    if config.new_biases:
        missing = set(missing_biases(anatomy))
        for site in anatomy.linear_sites:
            if site.module in missing:
                own = price["sites"][site.name]
                cost.train(own["row"], (site.out_features,), element=own["element"])
                cost.conflicts.add(f"{site.module}.bias")
                cost.first = min(cost.first, own["order"])
    return cost
