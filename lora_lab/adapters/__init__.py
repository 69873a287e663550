"""Adapters: one method a file, all behind the same verbs."""

from lora_lab.adapters.base import (
    Adapter,
    activate,
    active,
    attach,
    attached,
    detach,
    merge,
    unmerge,
)
from lora_lab.adapters.batches import mixed_batch
from lora_lab.adapters.combination import Combination
from lora_lab.adapters.lora import LoraAdapter, LoraSite
from lora_lab.adapters.sums import combine

__all__ = [
    "Adapter",
    "Combination",
    "LoraAdapter",
    "LoraSite",
    "activate",
    "active",
    "attach",
    "attached",
    "combine",
    "detach",
    "merge",
    "mixed_batch",
    "unmerge",
]
