"""Every method's share of a step: its exact counts, and what it makes the model keep.

Counts are those of Hu et al. (2022), section 5.1: d is the width of the residual stream, L the
number of blocks. Heads are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lora_lab.budget import activations as act
from lora_lab.errors import ConfigError
from lora_lab.methods.adalora.config import AdaLoraConfig
from lora_lab.methods.bottleneck.config import BottleneckConfig
from lora_lab.methods.config import need_count, unknown_module
from lora_lab.methods.cost import MASTER, PLAIN, Part, lora_options, lora_part
from lora_lab.methods.full.config import BitFitConfig, FullConfig
from lora_lab.methods.full.trained_weights import missing_biases, trained_weights
from lora_lab.methods.head.config import HeadConfig, head_names
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.lora.targets import ranks
from lora_lab.methods.prompt_tuning.config import PrefixEmbedConfig, PrefixLayerConfig

if TYPE_CHECKING:
    from lora_lab.anatomy.blocks import Row
    from lora_lab.anatomy.types import Anatomy, Weight

PREFIXES = (PrefixEmbedConfig, PrefixLayerConfig)
_BEFORE_THE_BLOCKS = -1
_LEARNED_TOKENS = "the learned tokens"


def parts_of(anatomy: Anatomy, configs: Sequence[Any], price: dict[str, Any]) -> list[Part]:
    """Return each config's part.

    Args:
        anatomy: the model.
        configs: any of `lora_lab.configs.MethodConfig`, but for full fine-tuning of everything.
        price: the model's `price_table`.

    Raises:
        ConfigError: what is no method's config, one that the model cannot use, or two that train
            the same weight.
    """
    found: list[tuple[str, Part]] = []
    for config in configs:
        if type(config) not in _BUILDERS:
            known = ", ".join(sorted(kind.__name__ for kind in _BUILDERS))
            raise ConfigError(f"{type(config).__name__} is no method's config; use one of {known}")
        part = _BUILDERS[type(config)](anatomy, config, price)
        for method, other in found:
            if both := part.claims & other.claims:
                raise ConfigError(
                    f"{method} and {config.method} both claim {min(both)}; leave one of them out, "
                    "or give them different targets"
                )
        found.append((config.method, part))
    return [part for _, part in found]


def learned_tokens(anatomy: Anatomy, configs: Sequence[Any], sequence_length: int) -> int:
    """Return l_p + l_i over all configs.

    Raises:
        ConfigError: where they and the sequence do not fit the model's positions.
    """
    need_count("sequence_length", sequence_length, least=1)
    tokens = sum(config.tokens for config in configs if isinstance(config, PREFIXES))
    most = anatomy.shape.max_positions
    if tokens and most is not None and tokens + sequence_length > most:
        left = most - tokens
        mend = f"use a sequence_length of at most {left}" if left > 0 else "use fewer of them"
        raise ConfigError(
            f"{tokens} learned tokens (prefix_length + infix_length) and {sequence_length} others "
            f"do not fit the model's {most} positions; {mend}"
        )
    return tokens


def _lora(anatomy: Anatomy, config: LoraConfig, price: dict[str, Any]) -> Part:
    return lora_part(price, ranks(anatomy, config), lora_options(config))


def _adalora(anatomy: Anatomy, config: AdaLoraConfig, price: dict[str, Any]) -> Part:
    """P, Λ and Q of rank init_r; what is saved is plain LoRA of the mean rank target_r."""
    start = ranks(anatomy, config.at_start())
    for name in start:
        AdaLoraConfig.check_kind(anatomy.by_name[name].module, anatomy.by_name[name].kind)
    part = lora_part(price, start, PLAIN | {"dropout": config.lora_dropout > 0})
    for name, r in start.items():
        site = price["sites"][name]
        part.train(site["row"], (r,))  # Λ
        part.kept[site["row"]] += r * site["activations"]  # ΛQx beside Qx
    part.state = 2 * MASTER * part.parameters  # sensitivity and uncertainty of every number
    part.checkpoint = config.target_r * sum(price["sites"][name]["checkpoint"] for name in start)
    part.estimated = True
    part.notes = (
        f"AdaLoRA starts at rank {config.init_r} and ends at mean rank {config.target_r}: memory "
        "is that of the start, the checkpoint that of the end, were every matrix of mean rank",
    )
    return part


def _top_layers(anatomy: Anatomy, config: FullConfig, price: dict[str, Any]) -> Part:
    """The last n blocks with all that is in them; 2(12d² + 13d) for FT-Top2 of a GPT."""
    assert config.top_layers is not None, "full fine-tuning of everything is in the price table"
    weights = trained_weights(anatomy, config)
    index = anatomy.row_index
    start = (layers := len(anatomy.rows)) - config.top_layers
    # A block's first norm keeps its input for its own weight; RMSNorm keeps the product instead.
    first = start * act.STAGES_A_BLOCK - (not anatomy.shape.block.rms_norm)
    part = Part(element=price["element"], first=first)
    for weight in weights:
        part.train(_row(weight, index), weight.shape, new=False)
        part.claims.add(weight.name)
    for site in (site for block in anatomy.blocks[start:] for site in block.roles.values()):
        part.groups.add(price["sites"][site.name]["group"])
        part.claims.add(site.name)
    for row in range(start, layers):
        part.kept[row] += price["rows"][row]["normed"]
    return part


def _bitfit(anatomy: Anatomy, config: BitFitConfig, price: dict[str, Any]) -> Part:
    """The backbone's bias vectors; 11Ld and the last norm's d in a GPT."""
    trained = set(trained_weights(anatomy, config))
    index = anatomy.row_index
    orders = {site.module: price["sites"][site.name]["order"] for site in anatomy.sites}
    part = Part(element=price["element"])
    in_blocks = False
    for weight in anatomy.weights:
        in_blocks |= weight.layer is not None
        if weight not in trained:
            continue
        row = _row(weight, index)
        part.train(row, weight.shape, new=False)
        part.claims.add(weight.name)
        # A norm's bias: the first in its block, or before all blocks (an embedding's).
        norm = row * act.STAGES_A_BLOCK - 1 if in_blocks else _BEFORE_THE_BLOCKS
        part.first = min(part.first, orders.get(weight.name.removesuffix(".bias"), norm))
    if config.new_biases:
        missing = set(missing_biases(anatomy))
        for site in anatomy.grid_sites:
            if site.module in missing:
                part.train(price["sites"][site.name]["row"], (site.out_features,))
                part.claims.add(f"{site.module}.bias")
                part.first = min(part.first, orders[site.module])
    return part


def _row(weight: Weight, index: dict[Row, int]) -> int:
    outside = len(index)
    return outside if weight.row is None else index.get(weight.row, outside)


def _prefix_embed(anatomy: Anatomy, config: PrefixEmbedConfig, _price: dict[str, Any]) -> Part:
    """Word embeddings of l_p + l_i special tokens: d(l_p + l_i)."""
    width = _word_width(anatomy, config)
    part = Part(first=_BEFORE_THE_BLOCKS, claims={_LEARNED_TOKENS})
    part.train(0, (config.tokens, width))
    return part


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


def _prefix_layer(anatomy: Anatomy, config: PrefixLayerConfig, _price: dict[str, Any]) -> Part:
    """Activations of l_p + l_i special tokens at every layer: L·d(l_p + l_i)."""
    _word_width(anatomy, config)
    d = _width(anatomy, config)
    part = Part(first=_BEFORE_THE_BLOCKS, claims={_LEARNED_TOKENS}, estimated=True)
    for number, row in enumerate(anatomy.rows):
        if row.stack == anatomy.rows[0].stack:  # the prompt is read by the encoder
            part.train(number, (config.tokens, d))
    return part


def _bottleneck(anatomy: Anatomy, config: BottleneckConfig, price: dict[str, Any]) -> Part:
    """Adapter layers of width r: 2dr + r + d each, with a LayerNorm of their own 2d more."""
    d, r = _width(anatomy, config), config.r
    if r > d:
        raise ConfigError(f"r is {r} and the model is {d} wide; use an r of at most {d}")
    config.dropped(min(Counter(row.stack for row in anatomy.rows).values()))
    element = price["element"]
    after_attention = config.layers_a_block == 2
    stage = act.AFTER_ATTENTION if after_attention else act.AFTER_MLP
    part = Part(first=stage, estimated=True)
    shapes: list[tuple[int, ...]] = [(r, d), (r,), (d, r), (d,)]
    shapes += [(d,), (d,)] if config.layer_norm else []
    # The input, f's output, and the norm's input.
    kept_a_token = (d + r + (d if config.layer_norm else 0)) * element
    tokens = {
        site.stack: price["sites"][site.name]["tokens"] for site in reversed(anatomy.grid_sites)
    }
    for number, row in enumerate(anatomy.rows):
        for _ in range(config.layers_a_block):
            part.train(number, *shapes)
            part.kept[number] += tokens[row.stack] * kept_a_token
        part.claims.add(f"the place after the MLP of layer {row.label}")
    return part


def _head(anatomy: Anatomy, config: HeadConfig, _price: dict[str, Any]) -> Part:
    for name in head_names(config, anatomy.heads):
        inside = any(f".{name}." in f".{weight.name}" for weight in anatomy.weights)
        # A tied output layer's weight is known as the embedding's.
        if not inside and not anatomy.shape.tied_embeddings:
            top = dict.fromkeys(weight.name.split(".")[0] for weight in anatomy.weights)
            raise unknown_module(name, top)
    return Part(notes=("the head is trained too; as in the paper it is not counted",))


def _width(anatomy: Anatomy, config: Any) -> int:
    if not anatomy.shape.hidden_size or not anatomy.rows:
        raise ConfigError(
            f"{config.method} needs the width of the model's blocks, and its config does not tell; "
            "use LoRA, which only needs the matrices"
        )
    return anatomy.shape.hidden_size


_BUILDERS: dict[type, Callable[[Anatomy, Any, dict[str, Any]], Part]] = {
    LoraConfig: _lora,
    AdaLoraConfig: _adalora,
    FullConfig: _top_layers,
    BitFitConfig: _bitfit,
    PrefixEmbedConfig: _prefix_embed,
    PrefixLayerConfig: _prefix_layer,
    BottleneckConfig: _bottleneck,
    HeadConfig: _head,
}
