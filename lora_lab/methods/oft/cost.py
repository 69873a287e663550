"""What OFT adds to a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.methods.cost import (
    MASTER,
    MethodCost,
    layer_claims,
    train_whole_modules,
    whole_modules,
)
from lora_lab.methods.oft.config import OFTConfig
from lora_lab.methods.oft.targets import resolve_rotations

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def oft_cost(anatomy: Anatomy, config: OFTConfig, price: dict[str, Any]) -> MethodCost:
    """Return the cost of the blocks, and of what each layer reads, kept in float32 for them."""
    cost = MethodCost(estimated=True)
    rotations = resolve_rotations(anatomy, config)
    for rotation in rotations:
        at = price["sites"][rotation.site.name]
        cost.train(at["row"], rotation.shape)
        cost.first = min(cost.first, at["order"])
        cost.kept[at["row"]] += at["tokens"] * at["in"] * MASTER
        # Q, its powers and R
        cost.kept[at["row"]] += 6 * MASTER * rotation.learned * rotation.size**2
    train_whole_modules(cost, anatomy, whole_modules(anatomy, config))
    cost.conflicts |= set(layer_claims(anatomy, {r.site.module for r in rotations}))
    cost.notes += tuple(rotation.note for rotation in rotations if rotation.note)[:1]
    return cost
