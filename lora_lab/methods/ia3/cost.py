"""What IA3 adds to a training step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.methods.cost import MethodCost
from lora_lab.methods.ia3.config import IA3Config
from lora_lab.methods.ia3.targets import resolve_vectors

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def ia3_cost(anatomy: Anatomy, config: IA3Config, price: dict[str, Any]) -> MethodCost:
    """Return the cost of one number for every feature that is scaled.

    A vector's gradient needs what it scales: an output is kept for it, an input becomes live.
    """
    cost = MethodCost(estimated=True)
    for vector in resolve_vectors(anatomy, config):
        at = price["sites"][vector.site.name]
        cost.train(at["row"], (vector.size,))
        cost.first = min(cost.first, at["order"])
        if vector.feedforward:
            cost.live_inputs.add(at["group"])
        else:
            cost.kept[at["row"]] += at.get("tokens", 0) * vector.size * price["element"]
        cost.conflicts |= _claims(anatomy, vector.site.module)
    return cost


def _claims(anatomy: Anatomy, module: str) -> set[str]:
    sites = {site.name for site in anatomy.by_name.values() if site.module == module}
    return sites | {w.name for w in anatomy.weights if w.name == f"{module}.bias"}
