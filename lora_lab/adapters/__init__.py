"""Adapters: one method a file, all behind the same verbs."""

from lora_lab.adapters.adalora import AdaLoraAdapter
from lora_lab.adapters.base import Adapter
from lora_lab.adapters.bottleneck import BottleneckAdapter
from lora_lab.adapters.combination import Combination
from lora_lab.adapters.factors.batches import mixed_batch
from lora_lab.adapters.factors.sums import combine
from lora_lab.adapters.head import HeadAdapter
from lora_lab.adapters.inplace import InPlaceAdapter
from lora_lab.adapters.lora import LoraAdapter, LoraSite
from lora_lab.adapters.prefix import PrefixEmbedAdapter, PrefixLayerAdapter, learned_tokens
from lora_lab.adapters.verbs import activate, active, attach, attached, detach, merge, unmerge

__all__ = [
    "AdaLoraAdapter",
    "Adapter",
    "BottleneckAdapter",
    "Combination",
    "HeadAdapter",
    "InPlaceAdapter",
    "LoraAdapter",
    "LoraSite",
    "PrefixEmbedAdapter",
    "PrefixLayerAdapter",
    "activate",
    "active",
    "attach",
    "attached",
    "combine",
    "detach",
    "learned_tokens",
    "merge",
    "mixed_batch",
    "unmerge",
]
