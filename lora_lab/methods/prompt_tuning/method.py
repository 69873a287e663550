"""The entries of PreEmbed and PreLayer in the registry."""

from __future__ import annotations

from typing import Any

from lora_lab.methods.descriptor import LEARNING_RATE, Field, Method, register
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig

_FOLDER = "lora_lab.methods.prompt_tuning"
_TOKENS = (
    Field("prefix_length", "prefix l_p", "learned tokens before the prompt", int),
    Field("infix_length", "infix l_i", "learned tokens behind the prompt", int),
)


def _numbers(config: Any) -> str:
    return f"{config.prefix_length} + {config.infix_length} tokens"


def _setting(config: Any) -> str:
    return f"l_p = {config.prefix_length}, l_i = {config.infix_length}"


def _size(config: Any) -> str:
    return f"{config.prefix_length}+{config.infix_length}"


_SHARED: dict[str, Any] = {
    "fields": _TOKENS,
    "numbers": _numbers,
    "setting": _setting,
    "size": _size,
    "joins": ("LoRA",),
    "no_ranks": "trains special tokens",
    "order": 40,
}
register(
    Method(
        name="PreEmbed",
        key="pre-embed",
        config=PrefixEmbedConfig,
        adapter=f"{_FOLDER}.adapter:PrefixEmbedAdapter",
        cost=f"{_FOLDER}.cost:prefix_embed_cost",
        about="word embeddings of special tokens are learned",
        short="PE",
        learning_rate=2.5 * LEARNING_RATE,
        rate_from="2.5 × LoRA's, as in the paper's Table 12",
        small_rate=2e-2,
        **_SHARED,
    ),
    Method(
        name="PreLayer",
        key="pre-layer",
        config=PrefixLayerConfig,
        adapter=f"{_FOLDER}.adapter:PrefixLayerAdapter",
        cost=f"{_FOLDER}.cost:prefix_layer_cost",
        about="activations of special tokens are learned after every layer",
        short="PL",
        learning_rate=LEARNING_RATE / 2,
        rate_from="half of LoRA's, as in the paper's Table 12",
        small_rate=2e-1,  # 5e-1, the highest that was tried, learned more still
        **_SHARED,
    ),
)
