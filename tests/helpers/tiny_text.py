"""A tiny language model and its byte-level tokenizer, for tests of tasks and loading."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def tiny_tokenizer(*, adds_bos: bool = False, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, after three special ones: 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*_SPECIAL.values(), *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
    special = _SPECIAL if pad else {k: v for k, v in _SPECIAL.items() if k != "pad_token"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tiny_llama(seed: int = 0, **changes: int) -> LlamaForCausalLM:
    """Two random layers over `tiny_tokenizer`'s 259 tokens, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 259,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            # Large random weights: a greedy choice then hangs on the whole prompt.
            "initializer_range": 0.5,
            **changes,
        }
    )
    return LlamaForCausalLM(config).eval()
