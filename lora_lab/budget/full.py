"""Full fine-tuning: everything learns, through float32 masters where it has fewer bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.budget import activations as act
from lora_lab.budget.costs import Memory
from lora_lab.budget.evaluate import is_made_again, step_peak
from lora_lab.budget.optimizers import master_rule, state_rule

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy


def full_memory(
    anatomy: Anatomy,
    price: Mapping[str, Any],
    blocks: Sequence[act.Block],
    head: act.Head,
    dtype: str,
) -> Memory:
    """Return the parts of the peak.

    Args:
        anatomy: the model.
        price: its table, all but "full".
        blocks: what each row keeps.
        head: what follows them.
        dtype: that the model is loaded in.
    """
    shape = anatomy.shape
    numbers = anatomy.unpacked(dtype)
    elements = [element for _, element in numbers]
    weights = sum(math.prod(size) * element for size, element in numbers)
    kept = [sum(piece.size for piece in b.pieces) + b.normed for b in blocks] + [0]
    freed = [0] * len(kept)
    gradients = [0] * len(kept)
    for group in price["groups"].values():
        if is_made_again(group, first=-1):
            continue
        kept[group["row"]] += group["bytes"]
        freed[group["row"]] += group["bytes"] if group["spent"] else 0
    for site in anatomy.sites:
        own = price["sites"][site.name]
        numbers_here = site.experts * site.in_features * site.out_features
        gradients[own["row"]] += numbers_here * own["element"]
        if own.get("again"):  # by the time that the product is walked back, its gradient is there
            freed[own["row"]] -= numbers_here * own["element"]
    outputs = 0
    if shape.block.lm_head:
        outputs = (shape.vocab_size or 0) * (shape.hidden_size or 0) * price["element"]
    price = {**price, "loss": head.full_loss}
    peak = step_peak(price, kept, freed, gradients, head=head.normed, head_gradient=outputs)
    # At the end all gradients are there, and a tied embedding's two halves are being added.
    tied = 2 * outputs if shape.tied_embeddings else 0
    rule = state_rule(price["optimizer"]["name"])
    shapes = [size for size, _ in numbers]
    masters = master_rule(shapes, elements)
    given = weights + masters.growth  # gradients, as the optimizer is given them
    scratch = rule.scratch(map(math.prod, shapes))
    peak = max(peak, weights + max(tied, masters.gathering), given + scratch)
    state = sum(map(rule.size, shapes)) + masters.state
    return Memory(weights, given, state, peak - given)
