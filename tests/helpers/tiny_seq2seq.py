"""Tiny encoder-decoder models with tokenizers that frame texts as T5's and BART's do."""

from __future__ import annotations

import random
import string

import torch
from tokenizers import processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from lora_lab.models import LoadedModel
from lora_lab.tasks import Example, GenerationTask
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_text import tiny_tokenizer

KINDS = ["t5", "t5-gated", "bart"]
FRAMES = {"t5": "$A </s>", "t5-gated": "$A </s>", "bart": "<s> $A </s>"}


def framing_tokenizer(kind: str = "t5") -> PreTrainedTokenizerFast:
    """One token a byte; T5's kind ends a text, BART's begins it too."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=FRAMES[kind], special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def tiny_seq2seq(kind: str = "t5") -> LoadedModel:
    """A random model of 2 + 3 layers (BART: 2 + 2), 32 wide, without dropout."""
    if kind == "bart":
        config = BartConfig(
            vocab_size=259,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=64,
            dropout=0.0,
            init_std=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BartForConditionalGeneration(config).eval()
    else:
        model = tiny(kind, vocab_size=259, eos_token_id=2, dropout_rate=0.0)
    return LoadedModel.given(model, framing_tokenizer(kind), f"tiny-{kind}")


def uneven_task(training: int = 64, held_out: int = 4) -> GenerationTask:
    """A letter and a number in, the letter so many times out: completions of many lengths."""
    rng = random.Random(0)

    def example() -> Example:
        letter, count = rng.choice(string.ascii_lowercase), rng.randint(1, 9)
        return Example(f"{letter} {count}", letter * count, (letter * count,))

    rows = [example() for _ in range(training + held_out)]
    return GenerationTask("repeats", True, rows[:training], rows[training:])
