"""What a block's activations depend on besides its sizes, read from modules and config."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

_IN_A_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class BlockFacts:
    """How a model's blocks are built.

    Attributes:
        activation: the MLP's function by its config name, None where the config has none.
        attention_dropout: probability, in training.
        hidden_dropout: probability on the branches' outputs, in training.
        eager_attention: scores are computed as tensors, not inside one SDPA kernel.
        norms: norms on the residual stream in one block.
        head_norms: whether q and k are normalised by head (Qwen3).
        rms_norm: RMSNorm as transformers writes it, not LayerNorm.
        final_norm: whether a norm follows the last block.
        lm_head: whether the model ends in logits over its vocabulary.
    """

    activation: str | None = None
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    eager_attention: bool = False
    norms: int = 2
    head_norms: bool = False
    rms_norm: bool = False
    final_norm: bool = True
    lm_head: bool = False


def read(model: nn.Module, *, lm_head: bool) -> BlockFacts:
    """Read the facts of a model; no weight is looked at."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    norms = {
        path: type(module).__name__
        for path, module in model.named_modules()
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
        eager_attention=getattr(text, "_attn_implementation", None) == "eager",
        norms=len(block) - len(by_head) if last else 2,
        head_norms=bool(by_head),
        rms_norm=any("rms" in name.lower() or name == "T5LayerNorm" for name in norms.values()),
        final_norm=any(
            path.rpartition(".")[0] == stack and "embed" not in path.lower()
            for path in norms
            if path not in inside
        ),
        lm_head=lm_head,
    )


def _first(config: Any, kind: type, *names: str) -> Any:
    """Return the first of the config's values under these names that is of this kind."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, kind) or (kind is float and isinstance(value, int)):
            return value
    return None
