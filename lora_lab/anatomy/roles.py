"""What a weight matrix is for, told from its name, its place in the block and the config.

Three things live here: which module name plays which role, how the rows of a fused matrix are
shared out, and how many heads a config has. Nothing here knows a model class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

STANDARD_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
ROLE_ORDER = ("q", "k", "v", "o", "cross.q", "cross.k", "cross.v", "cross.o", "gate", "up", "down")

_ROLE_OF_LEAF = {
    leaf: role
    for role, leaves in {
        "q": "q_proj query query_proj q_lin q q_attn",
        "k": "k_proj key key_proj k_lin k",
        "v": "v_proj value value_proj v_lin v",
        "o": "o_proj out_lin o",
        "gate": "gate_proj wi_0",
        "up": "up_proj wi_1 wi fc1 lin1 fc_in c_fc dense_h_to_4h ffn",
        "down": "down_proj fc2 lin2 fc_out dense_4h_to_h ffn_output",
    }.items()
    for leaf in leaves.split()
}
# The same name closes the attention in one place and the MLP in another.
_CLOSING_LEAVES = ("c_proj", "wo", "Wo")
AMBIGUOUS_LEAVES = frozenset({*_CLOSING_LEAVES, "out_proj", "dense"})


class Slice(NamedTuple):
    """Rows of a fused matrix: columns ``offset : offset + width`` of (groups, group_size)."""

    role: str
    groups: int
    group_size: int
    offset: int
    width: int


class _Layout(NamedTuple):
    order: str  # the roles, in the order of their rows within a group
    groups: int | None  # None: one group for each key-value head


_CONTIGUOUS = _Layout("q k v", 1)
_BY_HEAD = _Layout("q k v", None)
_GATED = _Layout("gate up", 1)

# Shapes do not tell the order of rows: 3d × d is contiguous in one model and interleaved by head in
# the next. So only model types whose code was read are split; any other fused matrix stays whole.
_FUSED: dict[tuple[str, str], _Layout] = {
    (leaf, model_type): layout
    for leaf, layout, model_types in (
        ("c_attn", _CONTIGUOUS, "gpt2 openai-gpt"),
        ("c_attn", _BY_HEAD, "gpt_bigcode"),
        ("qkv_proj", _CONTIGUOUS, "phi3"),
        ("qkv_proj", _Layout("q v k", 4), "codegen"),  # four blocks, left from its TPU sharding
        ("Wqkv", _CONTIGUOUS, "modernbert mpt"),
        ("query_key_value", _BY_HEAD, "gpt_neox gpt_neox_japanese bloom falcon persimmon"),
        ("in_proj", _BY_HEAD, "deberta"),
        ("gate_up_proj", _GATED, "phi3 glm glm4"),
        ("Wi", _GATED, "modernbert"),
    )
    for model_type in model_types.split()
}


def role(inner: Sequence[str]) -> str | None:
    """Return the standard role of a matrix, without the cross-attention prefix.

    Args:
        inner: the names from the block down to the matrix, such as ("attention", "self", "query").

    Returns:
        One of `STANDARD_ROLES`, or None where the name does not tell.
    """
    leaf = inner[-1]
    if leaf in _CLOSING_LEAVES:
        return "o" if _in_attention(inner) else "down"
    if leaf == "out_proj":
        return "o" if _in_attention(inner) else None
    if leaf == "dense":
        if _in_attention(inner):
            return "o"
        return {"intermediate": "up", "output": "down"}.get(".".join(inner[-2:-1]))
    return _ROLE_OF_LEAF.get(leaf)


def is_cross_attention(inner: Sequence[str]) -> bool:
    """Tell whether the names lead through an attention over another sequence."""
    return any(
        "cross" in name or "encdec" in name or name == "encoder_attn"
        for name in map(str.lower, inner)
    )


def expert_path(inner: Sequence[str]) -> str | None:
    """Return the path from the expert down ("experts.3.w1"), or None outside of experts."""
    for index, name in enumerate(inner[:-1]):
        if "expert" in name.lower():
            return ".".join(inner[index:])
    return None


def fused_slices(leaf: str, config: Any, out_features: int, *, cross: bool) -> tuple[Slice, ...]:
    """Return whose rows a matrix holds; empty where it is one site, or its layout is not known.

    Args:
        leaf: the module's own name.
        config: the transformers config nearest to the module, or None.
        out_features: the rows of the matrix.
        cross: whether it sits in a cross-attention, where only k and v are fused.
    """
    layout = _FUSED.get((leaf, getattr(config, "model_type", "")))
    if layout is None:
        return ()
    order = [r for r in layout.order.split() if not (cross and r == "q")]
    if "gate" in order:
        shares, groups = dict.fromkeys(order, 1), 1
    else:
        counted = head_counts(config)
        if counted is None:
            return ()
        heads, kv_heads = counted
        shares = {"q": heads, "k": kv_heads, "v": kv_heads}
        groups = layout.groups or kv_heads
    # Measured in shares (heads) of equal width, so no head size has to be believed.
    unit, rest = divmod(out_features, sum(shares[r] for r in order))
    if rest or any(shares[r] * unit % groups for r in order):
        return ()
    slices, offset = [], 0
    for r in order:
        width = shares[r] * unit // groups
        slices.append(Slice(r, groups, out_features // groups, offset, width))
        offset += width
    return tuple(slices)


def head_counts(config: Any) -> tuple[int, int] | None:
    """Return (query heads, key-value heads) of a config, or None where it does not say."""
    heads = first_int(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    if heads is None:
        return None
    # Falcon and GPTBigCode say it with a flag; Falcon's num_kv_heads is then not to be believed.
    if hasattr(config, "multi_query") and not getattr(config, "new_decoder_architecture", False):
        return heads, 1 if config.multi_query else heads
    return heads, first_int(config, "num_key_value_heads", "num_kv_heads") or heads


def first_int(config: Any, *names: str) -> int | None:
    """Return the first of some config fields that holds a whole number."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _in_attention(inner: Sequence[str]) -> bool:
    return any("attn" in name or "attention" in name for name in map(str.lower, inner[:-1]))
