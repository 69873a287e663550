"""What a model's config tells: its sizes, its blocks' form, and the model built without weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lora_lab._util.dtypes import dtype_name
from lora_lab._util.quiet import first_line
from lora_lab._util.transformers_private import attention_kind, build_from_config
from lora_lab.anatomy import roles
from lora_lab.anatomy.children import ADDED
from lora_lab.anatomy.gated_mlp import can_be_recomputed
from lora_lab.anatomy.types import BlockFacts, ModelShape
from lora_lab.anatomy.wrappers import modules_within, unwrapped
from lora_lab.errors import ModelError, as_cause

_OF_PLACES = re.compile(r"wpe|pos(?!t)")  # an embedding's name: places, not distances
_TABLED = {"mpt", "codegen", "gptj", "ctrl"}  # their tables are no embeddings
_IN_A_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")


def build_on_meta(config: Any) -> nn.Module:
    """Build the model of a transformers config without memory for its weights.

    Its parameters are of the config's dtype; torch's own default is left alone.

    Raises:
        ModelError: where transformers has no model for this config, or its sizes do not fit.
    """
    import transformers

    kind = type(config)
    for name in getattr(config, "architectures", None) or ():
        architecture = getattr(transformers, name, None)
        if getattr(architecture, "config_class", None) is kind:
            break
    else:
        from transformers.models.auto import modeling_auto as auto

        choices = [auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_MAPPING]
        if getattr(config, "is_encoder_decoder", False):
            # Not the causal model of such a config: it is the decoder alone.
            choices = [auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, auto.MODEL_MAPPING]
        elif not getattr(config, "is_decoder", False):
            choices.insert(0, auto.MODEL_FOR_MASKED_LM_MAPPING)
        architecture = next((choice[kind] for choice in choices if kind in choice), None)
    if architecture is None:
        raise ModelError(
            f"transformers knows no model for a {kind.__name__}; pass the model itself to anatomy()"
        )
    if isinstance(architecture, tuple):  # a few configs map to several heads
        architecture = architecture[0]
    try:
        return build_from_config(architecture, config)
    except Exception as error:  # whatever a model's constructor makes of sizes that do not fit
        raise ModelError(
            f"transformers cannot build a {architecture.__name__} of this config: "
            f"{first_line(error)}; fix its config.json"
        ) from as_cause(error)


def shape(
    model: nn.Module,
    *,
    stack_layers: dict[str, int],
    mlp_width: int | None,
    gated_mlp: bool,
    dtype: torch.dtype | None,
) -> ModelShape:
    """Put together what the modules and the config tell of a model's sizes.

    Args:
        model: the model.
        stack_layers: how many rows each stack has in the grid.
        mlp_width: the widest input of a "down" matrix, None without one.
        gated_mlp: whether a gate was seen.
        dtype: of most of the model's numbers.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads, kv_heads = roles.head_counts(text) or (None, None)
    hidden = roles.first_int(text, "hidden_size", "d_model", "n_embd", "dim")
    layers = roles.first_int(text, "num_hidden_layers", "num_layers", "n_layer", "n_layers")
    if layers is None or len(stack_layers) > 1:
        layers = sum(stack_layers.values())
    head_dim = roles.first_int(text, "head_dim", "d_kv")
    if head_dim is None and heads and hidden:
        head_dim = hidden // heads
    if mlp_width is None:  # packed experts have no "down" of their own
        mlp_width = roles.first_int(text, "intermediate_size", "ffn_dim", "d_ff", "n_inner")
    embedded = getattr(embedding(model, "get_input_embeddings"), "weight", None)
    output = getattr(embedding(model, "get_output_embeddings"), "weight", None)
    return ModelShape(
        model_type=getattr(text, "model_type", "") or type(model).__name__,
        hidden_size=hidden,
        num_layers=layers,
        intermediate_size=mlp_width,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=roles.first_int(text, "vocab_size"),
        max_positions=max_positions(model),
        tied_embeddings=embedded is not None and output is embedded,
        gated_mlp=gated_mlp,
        dtype_bytes=None if dtype is None else dtype.itemsize,
        block=block_facts(model, lm_head=output is not None),
        experts_per_token=_experts_per_token(text),
        position_limit=position_limit(model),
        dtype=None if dtype is None else dtype_name(dtype),
    )


def _experts_per_token(text: Any) -> int | None:
    # Llama 4 runs every token through every expert, most of them with a score of 0.
    if getattr(text, "model_type", "").startswith("llama4"):
        return roles.first_int(text, "num_local_experts")
    return roles.first_int(text, "num_experts_per_tok", "moe_k", "moe_topk")


def max_positions(model: nn.Module) -> int | None:
    """Return how many tokens a sequence of a model may have; None where there is no fixed limit.

    Of the positions that RoBERTa's kind names in its config the first ones are never used; see
    `positions_behind`. What T5's name is the length that it was trained with.
    """
    config: Any = getattr(model, "config", None)
    relative = getattr(config, "relative_attention_num_buckets", None) is not None
    return position_limit(model) if relative else _named_positions(model)


def _own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return modules_within(model, left_out=lambda _: ADDED)


def position_limit(model: nn.Module) -> int | None:
    """Return beyond how many tokens a model fails, because it looks places up in a table.

    None where it computes them (rotary, relative, ALiBi, sinusoids that grow): such a model reads
    sequences longer than those of its training, if not well.
    """
    named = _named_positions(model)
    if named is None:
        return None
    if getattr(model.config, "model_type", "") in _TABLED:
        return named
    behind = positions_behind(model)
    part: Any
    for path, part in _own_modules(model):
        table = isinstance(part, nn.Embedding) and _OF_PLACES.search(path.rpartition(".")[2])
        if table and not hasattr(part, "make_weight"):  # FSMT's grows
            skipped = getattr(part, "offset", 0) if behind is None else behind + 1
            if part.num_embeddings - skipped >= named:  # else of another tower: an image's
                return named
    return None


def _named_positions(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = roles.first_int(text, "max_position_embeddings", "n_positions", "max_seq_len")
    if named is None or named < 1:  # XLNet's says −1
        return None
    behind = positions_behind(model)
    return named if behind is None else named - behind - 1


def positions_behind(model: nn.Module) -> int | None:
    """Return the pad token of a model that counts positions from behind it, as RoBERTa does."""
    for _, part in _own_modules(model):
        if hasattr(type(part), "create_position_ids_from_inputs_embeds"):
            pad: int | None = part.padding_idx  # type: ignore[assignment]
            return pad
    return None


def embedding(model: nn.Module, getter: str) -> nn.Module | None:
    """Return what a model's getter gives, None where the model has no such embedding."""
    get = getattr(model, getter, None)
    if get is None:
        return None
    try:
        return unwrapped(get())
    except (NotImplementedError, AttributeError):  # models without one say so in either way
        return None


def block_facts(model: nn.Module, *, lm_head: bool) -> BlockFacts:
    """Return how a model's blocks are built; no weight is looked at."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    norms = {
        path: type(module).__name__
        for path, module in _own_modules(model)
        if "norm" in type(module).__name__.lower()
    }
    inside = {path: match for path in norms if (match := _IN_A_LAYER.fullmatch(path))}
    first = next(iter(inside.values()), None)
    block = [m[3] for m in inside.values() if first and m.group(1, 2) == first.group(1, 2)]
    by_head = [path for path in block if path.rpartition(".")[2] in ("q_norm", "k_norm")]
    stack = first[1].rpartition(".")[0] if first else ""
    last = {m[2] for m in inside.values() if first and m[1] == first[1]}
    return BlockFacts(
        activation=_first(text, str, "hidden_act", "activation_function", "hidden_activation")
        or _first(text, str, "activation", "dense_act_fn"),
        attention_dropout=_first(
            text, float, "attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"
        )
        or _first(text, float, "dropout_rate")
        or 0.0,
        hidden_dropout=_first(
            text, float, "hidden_dropout_prob", "resid_pdrop", "hidden_dropout", "dropout"
        )
        or _first(text, float, "dropout_rate")
        or 0.0,
        eager_attention=attention_kind(text) == "eager",
        norms=len(block) - len(by_head) if last else 2,
        head_norms=bool(by_head),
        rms_norm=any("rms" in name.lower() or name == "T5LayerNorm" for name in norms.values()),
        final_norm=any(
            path.rpartition(".")[0] == stack and "embed" not in path.lower()
            for path in norms
            if path not in inside
        ),
        lm_head=lm_head,
        recomputes_mlp=any(can_be_recomputed(part) for _, part in _own_modules(model)),
    )


def _first(config: Any, kind: type, *names: str) -> Any:
    """Return the first of the config's values under these names that is of this kind."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, kind) or (kind is float and isinstance(value, int)):
            return value
    return None
