"""Learned tokens with random values on tiny decoders, encoders and encoder-decoder models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import lora_lab as ll
from lora_lab.configs import PrefixEmbedConfig, PrefixLayerConfig
from lora_lab.methods.prompt_tuning.adapter import PrefixAdapter
from tests.helpers.plain_prompts import INFIX, PREFIX
from tests.helpers.tiny_models import ARCHITECTURES, VOCABULARY, tiny

EMBED = PrefixEmbedConfig(prefix_length=PREFIX, infix_length=INFIX)
LAYER = PrefixLayerConfig(prefix_length=PREFIX, infix_length=INFIX)
BOTH = pytest.mark.parametrize("config", [EMBED, LAYER], ids=["embed", "layer"])
CAUSAL = [
    *(
        n
        for n in ARCHITECTURES
        if n.startswith(("gpt", "llama", "smol", "mistral", "qwen", "gemma"))
    ),
    *("phi3", "bloom", "falcon-grouped", "falcon-multi-query", "falcon-interleaved", "opt"),
    *("openai-gpt", "persimmon", "bigcode"),
]


def adapted(
    model: nn.Module, config: Any, name: str = "default"
) -> tuple[PrefixAdapter, list[Tensor]]:
    """Attach with random tokens; return the adapter and leaf copies of them."""
    adapter = ll.attach(model, config, name)
    assert isinstance(adapter, PrefixAdapter)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=generator)
    return adapter, [p.detach().clone().requires_grad_() for p in adapter.parameters()]


HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bert": lambda m, h: m.classifier(m.bert.pooler(h)),
    "roberta": lambda m, h: m.classifier(h),
    "deberta-v2": lambda m, h: m.classifier(m.pooler(h)),
    "distilbert": lambda m, h: m.classifier(m.pre_classifier(h[:, 0]).relu()),
    "modernbert": lambda m, h: m.decoder(m.head(h)),
    "deberta": lambda m, h: m.classifier(m.pooler(h)),
}


def tiny_bart() -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


SEQ2SEQ: dict[str, Callable[[], Any]] = {
    "t5": lambda: tiny("t5"),
    "t5-gated": lambda: tiny("t5-gated"),
    "bart": tiny_bart,
}


def peft_model(base: nn.Module, task: str, tokens: Tensor) -> Any:
    config = peft.PromptTuningConfig(
        task_type=task, num_virtual_tokens=len(tokens), num_transformer_submodules=1
    )
    wrapped = peft.get_peft_model(base, config).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(tokens)
    return wrapped
