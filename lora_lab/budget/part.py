"""What one method adds to a training step: counts and bytes, ready to be put together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MASTER = 4  # bytes of an adapter's number: float32 whatever the model's dtype
NOTHING = math.inf  # the order of a part that trains nothing


@dataclass
class Part:
    """One method's share of a plan.

    Attributes:
        shapes: of every trained tensor, in the optimizer's order.
        element: bytes of a trained number.
        weights: bytes of the tensors that come on top of the model's own.
        first: position in the model (`activations.order_of`) up to which nothing is kept.
        groups: inputs that become live because a matrix that reads them learns.
        kept: {row: bytes of activations} besides.
        gradients: {row: bytes}.
        checkpoint: tensor bytes on disk.
        state: bytes that are kept beside the optimizer's own.
        claims: what no second method may train or stand in the place of.
        estimated: whether the activations are an estimate.
        notes: what people should know.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    element: int = MASTER
    weights: int = 0
    first: float = NOTHING
    groups: set[str] = field(default_factory=set)
    kept: Counter[int] = field(default_factory=Counter)
    gradients: Counter[int] = field(default_factory=Counter)
    checkpoint: int = 0
    state: int = 0
    claims: set[str] = field(default_factory=set)
    estimated: bool = False
    notes: tuple[str, ...] = ()

    def train(self, row: int, *shapes: tuple[int, ...], new: bool = True) -> None:
        """Train tensors of these shapes, which belong to a row, and save them.

        Args:
            row: number of their block.
            shapes: of the tensors.
            new: whether they come on top of the model's own.
        """
        self.shapes += shapes
        size = self.element * sum(map(math.prod, shapes))
        self.weights += size if new else 0
        self.gradients[row] += size
        self.checkpoint += size

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(map(math.prod, self.shapes))


def lora_part(price: Mapping[str, Any], ranks: Mapping[str, int]) -> Part:
    """Return LoRA of these ranks: A (r, in) and B (out, r) at every painted site."""
    part = Part()
    for name, r in ranks.items():
        site = price["sites"][name]
        part.train(site["row"], (r, site["in"]), (site["out"], r))
        part.kept[site["row"]] += r * site["activations"]
        part.groups.add(site["group"])
        part.first = min(part.first, site["order"])
        part.claims.add(name)
    part.checkpoint = sum(r * price["sites"][name]["checkpoint"] for name, r in ranks.items())
    return part
