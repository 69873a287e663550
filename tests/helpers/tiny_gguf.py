"""Tiny GGUF files, written by the package gguf as llama.cpp's converters write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WIDTH, INNER, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 2
KINDS = gguf.GGMLQuantizationType
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "Ġ Ġ"]
TOKENS = [*CONTROL, *sorted(ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]


def shapes(arch: str, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Return {GGUF's name: a tensor's shape} of a tiny model."""
    head = WIDTH // HEADS
    kv = KV_HEADS * head
    block = {
        "attn_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,),
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (kv, WIDTH),
        "attn_v.weight": (kv, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
        "ffn_gate.weight": (INNER, WIDTH),
        "ffn_up.weight": (INNER, WIDTH),
        "ffn_down.weight": (WIDTH, INNER),
    }
    if arch == "qwen2":
        block |= {"attn_q.bias": (WIDTH,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
    found = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    found |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}
    return found if tied else found | {"output.weight": (len(TOKENS), WIDTH)}


def write_tiny_gguf(
    path: Path,
    kind: Any = KINDS.Q4_1,
    *,
    arch: str = "llama",
    pre: str = "smollm",
    tied: bool = True,
    vocab_size: bool = True,
    extra: dict[str, float] | None = None,
) -> Path:
    """Write a model with random numbers: matrices as `kind`, the rest in float32."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if arch == "llama":
        writer.add_rope_dimension_count(WIDTH // HEADS)
    if vocab_size:
        writer.add_vocab_size(len(TOKENS))
    for key, value in (extra or {}).items():
        writer.add_float32(key, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in CONTROL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    rng = np.random.default_rng(0)
    for name, shape in shapes(arch, tied=tied).items():
        values = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
