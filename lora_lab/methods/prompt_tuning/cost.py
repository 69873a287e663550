"""What PreEmbed and PreLayer add to a training step (Hu et al., 2022, section 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.errors import ConfigError
from lora_lab.methods.cost import BEFORE_THE_BLOCKS, MethodCost, block_width
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy

_LEARNED_TOKENS = "the learned tokens"


def prefix_embed_cost(anatomy: Anatomy, config: PrefixEmbedConfig, _price: Any) -> MethodCost:
    """Return the cost of word embeddings of l_p + l_i special tokens: d(l_p + l_i)."""
    width = _word_width(anatomy, config)
    cost = MethodCost(first=BEFORE_THE_BLOCKS, conflicts={_LEARNED_TOKENS})
    cost.train(0, (config.tokens, width))
    return cost


def prefix_layer_cost(anatomy: Anatomy, config: PrefixLayerConfig, _price: Any) -> MethodCost:
    """Return the cost of activations of l_p + l_i special tokens at every layer: L·d(l_p + l_i)."""
    _word_width(anatomy, config)
    d = block_width(anatomy, config.method)
    cost = MethodCost(first=BEFORE_THE_BLOCKS, conflicts={_LEARNED_TOKENS}, estimated=True)
    for number, row in enumerate(anatomy.rows):
        if row.stack == anatomy.rows[0].stack:  # the prompt is read by the encoder
            cost.train(number, (config.tokens, d))
    return cost


def _word_width(anatomy: Anatomy, config: PrefixEmbedConfig | PrefixLayerConfig) -> int:
    """Return how wide a word's embedding is; OPT's are narrower than its blocks."""
    shape = anatomy.shape
    widths = [
        weight.shape[1]
        for weight in anatomy.weights
        if len(weight.shape) == 2 and weight.shape[0] == shape.vocab_size and not weight.head
    ]
    if not widths:
        raise ConfigError(
            f"{config.method} needs word embeddings and this model has none; use a LoRA"
        )
    return widths[0]
