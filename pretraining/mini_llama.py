"""Makes mini-llama, the small model that ships with LoRA Lab.

`nice python -m pretraining.mini_llama FOLDER` takes some three minutes of one core. Everything
follows from `SEED`: the tokenizer's file comes out the same anywhere, the weights on the same kind
of processor with the same torch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pretraining.corpus import documents

SEED = 0
BEGIN, END, PAD = "<s>", "</s>", "<pad>"
VOCABULARY, TOKENIZED = 2048, 12_000  # tokens; documents that they are counted in
STEPS, WARM_UP, BATCH, LENGTH = 600, 40, 8, 128
RATE, LAST_RATE, WEIGHT_DECAY = 3e-3, 1e-4, 0.1


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return byte-level BPE of the corpus, as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(SEED), TOKENIZED), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a Llama of SmolLM2's proportions that has learned nothing yet."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=512,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Tensor]:
    """Yield (BATCH, LENGTH) tokens: documents, each from its begin to its end, in a row."""
    texts, row = documents(SEED + 1), []
    while True:
        while len(row) < BATCH * LENGTH:
            row += tokenizer(f"{BEGIN}{next(texts)}{END}")["input_ids"]
        yield torch.tensor(row[: BATCH * LENGTH]).view(BATCH, LENGTH)
        row = row[BATCH * LENGTH :]


def rate(step: int) -> float:
    """Return the learning rate of a step: a warm-up, then half a cosine."""
    if step < WARM_UP:
        return RATE * (step + 1) / WARM_UP
    share = (step - WARM_UP) / (STEPS - WARM_UP)
    return LAST_RATE + (RATE - LAST_RATE) * (1 + math.cos(math.pi * share)) / 2


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int = STEPS
) -> Iterator[float]:
    """Train in place; yield each step's loss, nats per token."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    model.train()
    for step, ids in zip(range(steps), batches(tokenizer), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model, rounded to float16, and its tokenizer."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Make it, and say how it goes."""
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    for step, loss in enumerate(pretrain(model, tokenizer), start=1):
        if step % 50 == 0:
            print(f"step {step} of {STEPS}: {loss:.3f} nats per token", flush=True)
    save(model, tokenizer, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
