"""What an optimizer keeps beside the parameters, counted tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_lab.errors import ConfigError

OPTIMIZERS = {
    "adamw": "AdamW",
    "adamw_8bit": "8-bit AdamW",
    "sgd": "SGD",
    "adafactor": "Adafactor",
}
_FLOAT32 = 4


@dataclass(frozen=True)
class StateRule:
    """How many bytes of state one tensor takes; plain numbers, so that the browser can do it too.

    Attributes:
        per_entry: bytes an entry.
        small_below: tensors of fewer entries take `small_per_entry` instead.
        small_per_entry: bytes an entry of such a tensor.
        block: entries that share a scale; 0: none do.
        per_block: bytes of a block's scales.
        per_side: a matrix takes so many bytes a row and a column and nothing an entry; 0: it does
            not.
        held, carried: bytes an entry of the tensor at work, and of the one before it, that live
            while the optimizer steps.
    """

    per_entry: int = 0
    small_below: int = 0
    small_per_entry: int = 0
    block: int = 0
    per_block: int = 0
    per_side: int = 0
    held: int = 0
    carried: int = 0

    def size(self, shape: Sequence[int]) -> int:
        """Return the bytes of state that a tensor of this shape takes."""
        entries = math.prod(shape)
        if self.per_side and len(shape) > 1:
            *stack, rows, columns = shape
            return self.per_side * math.prod(stack) * (rows + columns)
        if entries < self.small_below:
            return self.small_per_entry * entries
        blocks = -(-entries // self.block) if self.block else 0
        return self.per_entry * entries + self.per_block * blocks

    def scratch(self, entries: Iterable[int]) -> int:
        """Return the temporaries of a step over tensors of these sizes, in this order."""
        most = before = 0
        for size in entries:
            most = max(most, self.held * size + self.carried * before)
            before = size
        return most


@dataclass(frozen=True)
class MasterRule:
    """What float32 masters take of tensors in half precision; see `lora_lab.methods.masters`.

    Attributes:
        state: bytes of the masters.
        growth: bytes by which their gradients, which the optimizer is given, are larger than the
            model's own.
        gathering: bytes that are there on top of the model's own at the dearest moment of making
            the ones of the others, tensor by tensor.
    """

    state: int = 0
    growth: int = 0
    gathering: int = 0


def master_rule(shapes: Iterable[Sequence[int]], elements: Iterable[int]) -> MasterRule:
    """Return what masters of trained tensors take; none has one whose entries have 4 bytes already.

    Args:
        shapes: in the optimizer's order.
        elements: bytes of an entry of each in the model.
    """
    growth = gathering = entries = 0
    for shape, element in zip(shapes, elements, strict=True):
        if element >= _FLOAT32:
            continue
        size = math.prod(shape)
        gathering = max(gathering, growth + _FLOAT32 * size)
        growth += (_FLOAT32 - element) * size
        entries += size
    return MasterRule(_FLOAT32 * entries, growth, gathering)


def state_rule(optimizer: str) -> StateRule:
    """Return the rule of an optimizer for float32 parameters, which masters are too.

    "adamw": torch's, fused, two moments. "adamw_8bit": bitsandbytes', moments of one byte with a
    float32 scale for 256 entries each, tensors below 4096 entries in float32; its 2 KiB of code
    tables are left out. "sgd": torch's without momentum. "adafactor": transformers', without a
    first moment; a matrix's second moment is a row and a column.

    Raises:
        ConfigError: for any other name.
    """
    rules = {
        "adamw": StateRule(per_entry=2 * _FLOAT32),
        "adamw_8bit": StateRule(
            per_entry=2,
            small_below=4096,
            small_per_entry=2 * _FLOAT32,
            block=256,
            per_block=2 * _FLOAT32,
        ),
        "sgd": StateRule(),
        "adafactor": StateRule(
            per_entry=_FLOAT32,
            per_side=_FLOAT32,
            held=2 * _FLOAT32,
            carried=_FLOAT32,
        ),
    }
    if optimizer not in rules:
        known = ", ".join(rules)
        raise ConfigError(f"optimizer {optimizer!r} is not modeled; use one of {known}")
    return rules[optimizer]
