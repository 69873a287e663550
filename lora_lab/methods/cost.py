"""What one method adds to a training step: counts and bytes, ready to be put together.

A position in the model is row · `STAGES_A_BLOCK` + the stage within the block at which an input is
read; nothing that is kept up to the first position that learns has to be.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError
from lora_lab.methods.lora.peft_fields import HEADS

if TYPE_CHECKING:
    from lora_lab.anatomy.blocks import Row
    from lora_lab.anatomy.types import Anatomy, Weight

MASTER = 4  # bytes of an adapter's number: float32 whatever the model's dtype
NOTHING = math.inf  # the position of what trains nothing
BEFORE_THE_BLOCKS = -1
AFTER_ATTENTION, AFTER_MLP = 3, 7  # what is kept next is the norm's, or a dropout's
STAGES_A_BLOCK = 10


@dataclass
class MethodCost:
    """What one method adds to a training step.

    Attributes:
        shapes: of every trained tensor, in the optimizer's order.
        elements: bytes of a number of each.
        weights: bytes of the tensors that come on top of the model's own.
        first: position in the model up to which nothing is kept.
        live_inputs: inputs that become live because a matrix that reads them learns.
        kept: {row: bytes of activations} besides.
        freed: {row: how many of them are freed at the block's dearest moment}.
        temporaries: {row: bytes that a site's backward pass needs at once, before it frees any}.
        forward: bytes that a site's forward pass needs at once.
        gradients: {row: bytes}.
        checkpoint: tensor bytes on disk.
        state: bytes that are kept beside the optimizer's own.
        conflicts: what no second method may train or stand in the place of.
        estimated: whether the activations are an estimate.
        notes: what people should know.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    elements: list[int] = field(default_factory=list)
    weights: int = 0
    first: float = NOTHING
    live_inputs: set[str] = field(default_factory=set)
    kept: Counter[int] = field(default_factory=Counter)
    freed: Counter[int] = field(default_factory=Counter)
    temporaries: Counter[int] = field(default_factory=Counter)
    forward: int = 0
    gradients: Counter[int] = field(default_factory=Counter)
    checkpoint: int = 0
    state: int = 0
    conflicts: set[str] = field(default_factory=set)
    estimated: bool = False
    notes: tuple[str, ...] = ()

    def train(
        self, row: int, *shapes: tuple[int, ...], new: bool = True, element: int = MASTER
    ) -> None:
        """Train tensors of these shapes, which belong to a row, and save them.

        Args:
            row: number of their block.
            shapes: of the tensors.
            new: whether they come on top of the model's own.
            element: bytes of a number.
        """
        self.shapes += shapes
        self.elements += [element] * len(shapes)
        size = element * sum(map(math.prod, shapes))
        self.weights += size if new else 0
        self.gradients[row] += size
        self.checkpoint += size

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(map(math.prod, self.shapes))


def block_width(anatomy: Anatomy, method: str) -> int:
    """Return d, the width of the model's blocks.

    Raises:
        ConfigError: the model does not tell.
    """
    if not anatomy.shape.hidden_size or not anatomy.rows:
        raise ConfigError(
            f"{method} needs the width of the model's blocks, and its config does not tell; use "
            "LoRA, which only needs the matrices"
        )
    return anatomy.shape.hidden_size


def train_biases(
    cost: MethodCost, anatomy: Anatomy, trained: Iterable[Weight], price: dict[str, Any]
) -> None:
    """Add bias vectors of the model's own that are trained in place."""
    wanted = set(trained)
    index = anatomy.row_index
    orders = {site.module: price["sites"][site.name]["order"] for site in anatomy.sites}
    sizes = anatomy.sizes(price["dtype"])
    in_blocks = False
    for weight in anatomy.weights:
        in_blocks |= weight.layer is not None
        if weight not in wanted:
            continue
        row = row_number(weight, index)
        cost.train(row, weight.shape, new=False, element=sizes[weight.name])
        cost.conflicts.add(weight.name)
        # A norm's bias: the first in its block, or before all blocks (an embedding's).
        norm = row * STAGES_A_BLOCK - 1 if in_blocks else BEFORE_THE_BLOCKS
        cost.first = min(cost.first, orders.get(weight.name.removesuffix(".bias"), norm))


def whole_modules(anatomy: Anatomy, config: Any) -> tuple[str, ...]:
    """Return the modules that a config has trained whole: those it names, and its task's head.

    Args:
        anatomy: of the model.
        config: with `modules_to_save` and `task_type`, as PEFT's have them.
    """
    ends = HEADS.get(config.task_type or "", ())
    heads = {
        path: None
        for weight in (anatomy.weights if ends else ())
        for path in itertools.accumulate(weight.name.split(".")[:-1], "{}.{}".format)
        if path.endswith(ends)
    }
    return (*(config.modules_to_save or ()), *heads)


def train_whole_modules(cost: MethodCost, anatomy: Anatomy, names: Iterable[str]) -> None:
    """Add copies in float32 of whole modules, a classifier's head among them.

    What the paper's counts leave out is told in a note.

    Args:
        cost: is added to.
        anatomy: of the model.
        names: of the modules, or the ends of their paths.
    """
    tables = {site.module for site in anatomy.others if site.kind == "embedding"}
    counted: set[str] = set()  # of the two ends of a tied weight one
    heads: list[str] = []
    of_heads = 0
    for name in names:
        end, is_head = anatomy.first_end(name), name in anatomy.heads
        for weight in anatomy.weights:
            if f".{end}." not in f".{weight.name}" or weight.name in counted:
                continue
            counted.add(weight.name)
            row = row_number(weight, anatomy.row_index)
            at_start = end == name and weight.name.rpartition(".")[0] in tables
            cost.train(row, weight.shape)
            cost.first = min(cost.first, BEFORE_THE_BLOCKS if at_start else row * STAGES_A_BLOCK)
            cost.estimated |= not is_head  # which keeps next to nothing besides
            of_heads += weight.size if is_head else 0
        heads += [name] if is_head else []
    if heads:
        cost.notes += (head_words(of_heads, heads),)


def head_words(count: int, names: Iterable[str]) -> str:
    """Say how many parameters of a classifier's head are trained beside the method's own."""
    return (
        f"the {count:,} parameters of the head ({', '.join(names)}) are trained whole; the paper's "
        "counts leave heads out"
    )


def row_number(weight: Weight, index: Mapping[Row, int]) -> int:
    """Return the number of a weight's block; of one outside the blocks their number."""
    outside = len(index)
    return outside if weight.row is None else index.get(weight.row, outside)


def layer_claims(anatomy: Anatomy, modules: Collection[str]) -> Iterator[str]:
    """Yield the names of all sites of these modules and of their biases: see `conflicts`."""
    yield from (site.name for site in anatomy.by_name.values() if site.module in modules)
    yield from (w.name for w in anatomy.weights if w.name.removesuffix(".bias") in modules)
