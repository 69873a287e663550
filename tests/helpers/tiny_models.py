"""Tiny random transformers of many architectures, the same ones on every run.

`tiny(name)` builds one; `ARCHITECTURES` lists those that LoRA Lab promises to read, `MORE_FUSED`
others whose fused matrices it splits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 96
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_SPECIAL,
}
_GROUPED = {**_USUAL, "num_key_value_heads": 2}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    **_SPECIAL,
}
_FALCON = {key: value for key, value in _USUAL.items() if key != "intermediate_size"}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 12,  # 4 heads of 12 are wider than the model
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}


class Recipe(NamedTuple):
    """A config class, its sizes and the model class."""

    config: str
    sizes: dict[str, Any]
    model: str


_RECIPES = {
    "gpt2": Recipe("GPT2Config", _GPT2, "GPT2LMHeadModel"),
    "gpt2-cross": Recipe("GPT2Config", {**_GPT2, "add_cross_attention": True}, "GPT2LMHeadModel"),
    "llama": Recipe("LlamaConfig", _GROUPED, "LlamaForCausalLM"),
    "smollm": Recipe("LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}, "LlamaForCausalLM"),
    "mistral": Recipe("MistralConfig", _GROUPED, "MistralForCausalLM"),
    "qwen2": Recipe("Qwen2Config", _GROUPED, "Qwen2ForCausalLM"),
    "qwen3": Recipe("Qwen3Config", {**_GROUPED, "head_dim": 16}, "Qwen3ForCausalLM"),
    "gemma": Recipe(
        "GemmaConfig", {**_GROUPED, "num_key_value_heads": 1, "head_dim": 16}, "GemmaForCausalLM"
    ),
    "gemma2": Recipe("Gemma2Config", {**_GROUPED, "head_dim": 16}, "Gemma2ForCausalLM"),
    "gemma3": Recipe("Gemma3TextConfig", {**_GROUPED, "head_dim": 16}, "Gemma3ForCausalLM"),
    "phi3": Recipe("Phi3Config", _GROUPED, "Phi3ForCausalLM"),
    "gpt-neox": Recipe("GPTNeoXConfig", _USUAL, "GPTNeoXForCausalLM"),
    "bloom": Recipe(
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_SPECIAL},
        "BloomForCausalLM",
    ),
    "falcon-grouped": Recipe(
        "FalconConfig",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        "FalconForCausalLM",
    ),
    "falcon-multi-query": Recipe(
        "FalconConfig", {**_FALCON, "multi_query": True}, "FalconForCausalLM"
    ),
    "falcon-interleaved": Recipe(
        "FalconConfig",
        {**_FALCON, "multi_query": False, "parallel_attn": False, "alibi": True},
        "FalconForCausalLM",
    ),
    "opt": Recipe(
        "OPTConfig",
        {
            **{k: v for k, v in _USUAL.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 16,
        },
        "OPTForCausalLM",
    ),
    "bert": Recipe("BertConfig", _USUAL, "BertForSequenceClassification"),
    "roberta": Recipe("RobertaConfig", _USUAL, "RobertaForSequenceClassification"),
    "deberta-v2": Recipe(
        "DebertaV2Config",
        {
            **_USUAL,
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": False,
        },
        "DebertaV2ForSequenceClassification",
    ),
    "distilbert": Recipe(
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
        "DistilBertForSequenceClassification",
    ),
    "modernbert": Recipe(
        "ModernBertConfig",
        {**_USUAL, "cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 3},
        "ModernBertForMaskedLM",
    ),
    "t5": Recipe("T5Config", _T5, "T5ForConditionalGeneration"),
    "t5-gated": Recipe(
        "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "T5ForConditionalGeneration",
    ),
    "vit": Recipe(
        "ViTConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 8,
            "patch_size": 4,
        },
        "ViTForImageClassification",
    ),
}
ARCHITECTURES = list(_RECIPES)

_RECIPES |= {
    "bigcode": Recipe("GPTBigCodeConfig", {**_GPT2, "multi_query": False}, "GPTBigCodeForCausalLM"),
    "bigcode-multi-query": Recipe(
        "GPTBigCodeConfig", {**_GPT2, "multi_query": True}, "GPTBigCodeForCausalLM"
    ),
    "openai-gpt": Recipe("OpenAIGPTConfig", _GPT2, "OpenAIGPTLMHeadModel"),
    "codegen": Recipe("CodeGenConfig", {**_GPT2, "rotary_dim": 4}, "CodeGenForCausalLM"),
    "gpt-neox-japanese": Recipe("GPTNeoXJapaneseConfig", _USUAL, "GPTNeoXJapaneseForCausalLM"),
    "persimmon": Recipe("PersimmonConfig", _USUAL, "PersimmonForCausalLM"),
    "mpt": Recipe(
        "MptConfig",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
        "MptForCausalLM",
    ),
    "glm": Recipe("GlmConfig", {**_GROUPED, "head_dim": 16}, "GlmForCausalLM"),
    "glm4": Recipe("Glm4Config", {**_GROUPED, "head_dim": 16}, "Glm4ForCausalLM"),
    "deberta": Recipe(
        "DebertaConfig",
        {**_USUAL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        "DebertaForSequenceClassification",
    ),
}
MORE_FUSED = [name for name in _RECIPES if name not in ARCHITECTURES]


def tiny_config(name: str, **changes: Any) -> transformers.PretrainedConfig:
    """Return the config of a tiny model, with its architecture noted as a saved one has it."""
    recipe = _RECIPES[name]
    config = getattr(transformers, recipe.config)(**{**recipe.sizes, **changes})
    config.architectures = [recipe.model]
    return config


def tiny(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """Return a tiny model in eval mode, float32, the same for the same seed.

    Weights and biases are drawn wider than at a real start, so that every one of them shows in
    the outputs.
    """
    config = tiny_config(name, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, _RECIPES[name].model)._from_config(config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.dim() >= 2:
                    parameter.normal_(std=0.2)
                elif key.endswith(".bias"):
                    parameter.normal_(std=0.1)
    return model.eval()


def tiny_inputs(model: nn.Module, batch: int = 1, length: int = 6, seed: int = 0) -> dict[str, Any]:
    """Return what a tiny model's forward takes: tokens, an image, or two sequences."""
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config

    def tokens(count: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (batch, count), generator=generator)

    if config.model_type == "vit":
        size = config.image_size
        return {"pixel_values": torch.randn(batch, 3, size, size, generator=generator)}
    inputs: dict[str, Any] = {"input_ids": tokens(length)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(length - 1)
    if getattr(config, "add_cross_attention", False):
        inputs["encoder_hidden_states"] = torch.randn(
            batch, length + 1, config.hidden_size, generator=generator
        )
    return inputs
