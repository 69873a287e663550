"""What one method adds to a training step: counts and bytes, ready to be put together."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
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
        spent: {row: how many of them are freed at the block's dearest moment}.
        work: {row: bytes that a site's backward pass needs at once, before anything is freed}.
        forward: bytes that a site's forward pass needs at once.
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
    spent: Counter[int] = field(default_factory=Counter)
    work: Counter[int] = field(default_factory=Counter)
    forward: int = 0
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


def lora_options(config: Any) -> dict[str, Any]:
    """Return what of a LoRA-like config changes the price, as the price table's "lora" has it."""
    return {
        "dropout": config.lora_dropout > 0,
        "learns_A": not getattr(config, "use_lorafa", False),
        "lengths": getattr(config, "use_dora", False),
        # PiSSA and OLoRA: beside A and B stand the frozen A₀ and B₀ that they started from.
        "copies": 2 if getattr(config, "starts_from_base", False) else 1,
    }


PLAIN = {"dropout": False, "learns_A": True, "lengths": False, "copies": 1}


def lora_part(
    price: Mapping[str, Any], ranks: Mapping[str, int], options: Mapping[str, Any] | None = None
) -> Part:
    """Return LoRA of these ranks: A (r, in) and B (out, r) at every painted site.

    Args:
        price: the table.
        ranks: {site name: rank}.
        options: what `lora_options` returns; by default the table's own.
    """
    options = options or price["lora"]
    part = Part()
    together: defaultdict[tuple[str, int], list[tuple[dict[str, Any], int]]] = defaultdict(list)
    for name, r in ranks.items():
        site = price["sites"][name]
        part.first = min(part.first, site["order"])
        part.claims.add(name)
        if site["kind"] == "linear":
            together[site["group"], site["row"]].append((site, r))
        else:
            _other(part, site, r)
    for sites in together.values():
        _readers(part, price, sites, options)
    return part


def _other(part: Part, site: Mapping[str, Any], r: int) -> None:
    """An embedding or a convolution: none of the options is theirs."""
    part.train(site["row"], (r, site["in"]), (site["out"], r))
    part.kept[site["row"]] += r * site["activations"]
    part.groups.add(site["group"])
    part.estimated |= site["kind"] == "conv"


def _readers(
    part: Part,
    price: Mapping[str, Any],
    sites: list[tuple[dict[str, Any], int]],
    options: Mapping[str, Any],
) -> None:
    """Linear sites of one block that read one input, and share a pass through their A's."""
    element = price["element"]
    copies, cast_down = options["copies"], element != MASTER
    first, _ = min(sites, key=lambda pair: pair[0]["at"])  # keeps what all of them share
    tokens = first["tokens"]
    row, down, width = first["row"], first["last"], first["in"]
    stacked = cast_down or len(sites) * copies > 1
    for site, r in sites:
        shapes: list[tuple[int, ...]] = [(site["out"], r)]
        if options["learns_A"]:
            shapes.insert(0, (r, width))
        frozen = (copies * r * (width + site["out"])) - sum(map(math.prod, shapes))
        if options["lengths"]:
            shapes.append((site["out"],))
        part.train(row, *shapes)
        part.weights += MASTER * frozen
        part.checkpoint += copies * r * site["checkpoint"] - MASTER * sum(map(math.prod, shapes))
        thin = copies * r * tokens * element  # H = Ax
        part.kept[row] += thin if site["module"] == first["module"] else 2 * thin
        part.kept[row] += copies * r * width * element if stacked else 0
        part.kept[row] += copies * r * site["out"] * element if cast_down else 0
        if options["lengths"]:  # the norm, the gain and its cast
            part.kept[row] += site["out"] * (2 * MASTER + (element if cast_down else 0))
            part.forward = max(part.forward, MASTER * width * site["out"] if cast_down else 0)
    if options["learns_A"]:
        part.groups.add(first["group"])
    if options["dropout"]:
        part.kept[row] += tokens * width  # the mask, one byte an entry
        part.spent[row] += tokens * width if down else 0
        if down:  # its output's gradient, its input's, and that on its way through the mask
            widths = first["module_out"] + (4 if options["learns_A"] else 3) * width
            part.work[row] = max(part.work[row], tokens * widths * element)
    if options["lengths"]:
        for module_out in {site["module"]: site["module_out"] for site, _ in sites}.values():
            part.checkpoint += MASTER * module_out
            part.kept[row] += tokens * module_out * element  # what the gain is applied to
            part.spent[row] += tokens * module_out * element if down else 0
