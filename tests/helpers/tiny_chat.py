"""A tiny causal language model with a real tokenizer, for tests that need speed and no sense."""

from __future__ import annotations

import functools
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_lab.tasks import load_task


def tiny_chat_model(
    pause: float = 0.0, layers: int = 4
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Return a Llama of random weights and a tokenizer trained on mini-e2e.

    Args:
        pause: seconds that it sleeps in each pass of a training that is only to go on.
        layers: how many it has.
    """
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)

    def rest(module: LlamaForCausalLM, *_: object) -> None:
        if module.training:
            time.sleep(pause)

    if pause:
        model.register_forward_pre_hook(rest)
    return model, tokenizer


def _tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(_trained())
    return PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="<eos>")


@functools.cache  # to train it takes as long as to open a workbench
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    examples = load_task("mini-e2e").train
    tokenizer.train_from_iterator((f"{e.prompt}\n{e.completion}" for e in examples), trainer)
    return tokenizer.to_str()
