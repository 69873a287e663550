"""Tiny models with routed experts: Mixtral and its kin, one of each way to store them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

_USUAL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DEEPSEEK = {
    **_USUAL,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_QWEN = {
    **_USUAL,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "head_dim": 8,
}
_LLAMA4 = {
    **_USUAL,
    "num_experts_per_tok": 1,
    "head_dim": 8,
    "intermediate_size_mlp": 48,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 1,
}
_EXPERTS = {
    "mixtral": ("Mixtral", _USUAL | {"num_local_experts": 4}),
    "qwen2-moe": ("Qwen2Moe", _QWEN | {"mlp_only_layers": [0]}),
    "qwen3-moe": ("Qwen3Moe", _QWEN),
    "olmoe": ("Olmoe", _USUAL | {"num_experts": 4}),
    "deepseek-v2": ("DeepseekV2", _DEEPSEEK),
    "deepseek-v3": ("DeepseekV3", _DEEPSEEK),
    "gpt-oss": ("GptOss", _USUAL | {"num_local_experts": 4, "head_dim": 8}),
    "llama4": ("Llama4", _LLAMA4),
    "phimoe": ("Phimoe", _USUAL | {"num_local_experts": 4}),
    "granitemoe": ("GraniteMoe", _USUAL | {"num_local_experts": 4}),
    "glm4-moe": ("Glm4Moe", _DEEPSEEK | {"head_dim": 8, "num_key_value_heads": 2}),
    "ernie": ("Ernie4_5_Moe", _QWEN | {"moe_num_experts": 4, "moe_k": 2}),
}
EXPERTS = list(_EXPERTS)


def tiny_experts(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """Return a tiny model in eval mode, float32, the same for the same seed."""
    family, sizes = _EXPERTS[name]
    config_class = f"{family}TextConfig" if family == "Llama4" else f"{family}Config"
    config = getattr(transformers, config_class)(**{**sizes, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")._from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(std=0.2)
    return model.eval()


def tokens(batch: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    """Return token ids, (batch, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 90, (batch, length), generator=generator)


def logits(model: nn.Module) -> Tensor:
    """Return what a model says of `tokens()`, cut off from autograd."""
    with torch.no_grad():
        return model(input_ids=tokens()).logits
