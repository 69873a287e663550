"""The entry of a classifier's head in the registry: it is trained beside the other methods."""

from __future__ import annotations

from lora_lab.methods.descriptor import Method, register
from lora_lab.methods.head.config import HeadConfig

register(
    Method(
        name="Head",
        config=HeadConfig,
        adapter="lora_lab.methods.head.adapter:HeadAdapter",
        cost="lora_lab.methods.head.cost:head_cost",
    )
)
