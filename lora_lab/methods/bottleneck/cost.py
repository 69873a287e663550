"""What adapter layers add to a training step."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError
from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.cost import AFTER_ATTENTION, AFTER_MLP, MethodCost, block_width

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def bottleneck_cost(
    anatomy: Anatomy, config: BottleneckConfig, price: dict[str, Any]
) -> MethodCost:
    """Return the cost of layers of width r: 2dr + r + d each, with a LayerNorm 2d more."""
    d, r = block_width(anatomy, config.method), config.r
    if r > d:
        raise ConfigError(f"r is {r} and the model is {d} wide; use an r of at most {d}")
    config.dropped(min(Counter(row.stack for row in anatomy.rows).values()))
    element = price["element"]
    after_attention = config.layers_a_block == 2
    stage = AFTER_ATTENTION if after_attention else AFTER_MLP
    cost = MethodCost(first=stage, estimated=True)
    shapes: list[tuple[int, ...]] = [(r, d), (r,), (d, r), (d,)]
    shapes += [(d,), (d,)] if config.layer_norm else []
    # The input, f's output, and the norm's input.
    kept_a_token = (d + r + (d if config.layer_norm else 0)) * element
    tokens = {
        site.stack: price["sites"][site.name]["tokens"] for site in reversed(anatomy.linear_sites)
    }
    for number, row in enumerate(anatomy.rows):
        for _ in range(config.layers_a_block):
            cost.train(number, *shapes)
            cost.kept[number] += tokens[row.stack] * kept_a_token
        cost.conflicts.add(f"the place after the MLP of layer {row.label}")
    return cost
