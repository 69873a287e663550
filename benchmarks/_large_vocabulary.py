"""Two layers in the sizes of Qwen2-0.5B, under 151,936 words, with LoRA on q and v."""

from __future__ import annotations

from typing import Any

import torch
import transformers

import lora_lab as ll

_TARGETS = {"q": "q_proj", "v": "v_proj"}


def words(small: bool = False) -> int:
    """Return the vocabulary's size; `small`: of a rehearsal."""
    return 2048 if small else 151_936


def adapted(ours: bool, small: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model, the same weights every time, adapted by us or by PEFT."""
    torch.manual_seed(0)
    width = 64 if small else 896
    config = transformers.Qwen2Config(
        vocab_size=words(small),
        hidden_size=width,
        intermediate_size=320 if small else 4864,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        num_key_value_heads=1 if small else 2,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = transformers.Qwen2ForCausalLM._from_config(config, dtype=dtype)
    if ours:
        ll.attach(model, ll.LoraConfig(r=8, target_modules=[*_TARGETS]))
        return model
    import peft

    targets = [*_TARGETS.values()]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM")
    )
