"""What IA3 adds to a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.methods.cost import MethodCost, layer_claims, train_whole_modules, whole_modules
from lora_lab.methods.ia3.config import IA3Config
from lora_lab.methods.ia3.targets import resolve_vectors

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def ia3_cost(anatomy: Anatomy, config: IA3Config, price: dict[str, Any]) -> MethodCost:
    """Return the cost of one number for every feature that is scaled.

    A vector's gradient needs what it scales: an output is kept for it, an input becomes live.
    """
    cost, modules = MethodCost(estimated=True), set()
    for vector in resolve_vectors(anatomy, config):
        at = price["sites"][vector.site.name]
        cost.train(at["row"], (vector.size,))
        cost.first = min(cost.first, at["order"])
        if vector.feedforward:
            cost.live_inputs.add(at["group"])
        else:
            cost.kept[at["row"]] += at.get("tokens", 0) * vector.size * at["element"]
        modules.add(vector.site.module)
    train_whole_modules(cost, anatomy, whole_modules(anatomy, config))
    cost.conflicts |= set(layer_claims(anatomy, modules))
    return cost
