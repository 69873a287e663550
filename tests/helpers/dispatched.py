"""Models that transformers' own `device_map` loading spreads: one CPU plays the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import lora_lab as ll
from lora_lab._util.quiet import quiet_transformers
from lora_lab.models import LoadedModel
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

PARTS = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head")
ON_CPU = dict.fromkeys((*PARTS, "model.rotary_emb"), "cpu")
SPREAD = {
    "a block on the disk": ON_CPU | {"model.layers.0": "disk"},
    "all but the embedding": dict.fromkeys(ON_CPU, "disk") | {"model.embed_tokens": "cpu"},
    "everything": dict.fromkeys(ON_CPU, "disk"),
}


def spread(
    folder: Path, device_map: dict[str, str], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Any:
    """Return `tiny_llama(seed)` as `from_pretrained(device_map=…)` loads it."""
    with quiet_transformers():
        tiny_llama(seed).to(dtype).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, dtype=dtype)


def spread_lm(
    folder: Path, device_map: dict[str, str], seed: int = 0, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    model = spread(folder, device_map, seed, dtype)
    return LoadedModel.given(model, tiny_tokenizer(), "tiny-llama")


LORA = ll.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
METHODS: dict[str, Any] = {
    "LoRA": LORA,
    "embedding": LORA.replace(target_modules=["embed_tokens", "lm_head", "v_proj"]),
    "DoRA": LORA.replace(use_dora=True),
    "PiSSA": LORA.replace(init_lora_weights="pissa"),
    "LoRA-FA": LORA.replace(use_lorafa=True),
    "lora_bias": LORA.replace(lora_bias=True),
    "tokens": LORA.replace(trainable_token_indices=[3, 4, 5]),
    "AdaLoRA": ll.AdaLoraConfig(target_r=1, init_r=2),
    "IA3": ll.IA3Config(),
    "OFT": ll.OFTConfig(oft_block_size=4, target_modules=["o_proj", "down_proj"]),
    "PreEmbed": ll.PrefixEmbedConfig(3, 2),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "Adapter^H": ll.BottleneckConfig("H", r=3),
    "Adapter^L": ll.BottleneckConfig("L", r=3),
    "Adapter^P": ll.BottleneckConfig("P", r=3),
    "LoRA+PE": [LORA, ll.PrefixEmbedConfig(3, 2)],
}
OWN_WEIGHTS: dict[str, Any] = {
    "FT": ll.FullConfig(),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "modules_to_save": LORA.replace(modules_to_save=["lm_head"]),
}


def moved(model: Any, config: Any) -> Any:
    """Attach an adapter that has moved from its start, the same one every time."""
    torch.manual_seed(1)
    adapter = ll.attach(model, config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter
