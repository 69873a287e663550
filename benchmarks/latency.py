"""The paper's Table 1 on this machine: what a method costs when it answers.

`python -m benchmarks.latency` prints one forward pass at the paper's batch 16 × 256 and 1 × 128
tokens, each method against the bare model in alternating runs; 1.00× is the lower bound. The blocks
are GPT-2 medium's, fewer of them and with as large a share of its vocabulary, so that every part
keeps its share of the work. LoRA and the adapters have the paper's 11M parameters on 24 blocks.
"""

from __future__ import annotations

import argparse
import gc
from functools import partial
from typing import Any

import torch
from torch import nn

import lora_lab as ll
from benchmarks._measure import Row, alternate, median_ratio, print_table

MEDIUM = {"n_embd": 1024, "n_head": 16, "n_positions": 1024}
BLOCKS, VOCABULARY = 24, 50257
SHAPES = {(1, 128): 21, (16, 256): 3}  # {(batch, tokens): rounds}
LORA = ll.LoraConfig(r=112, lora_alpha=112, target_modules=["q", "v"])
BARE, AGAIN = "bare", "the bare model again: the noise"
MERGED, OPEN = "LoRA, merged, r=112 on q, v", "LoRA, not merged, r=112 on q, v"
# {method: {(batch, tokens): the paper's extra time}}
PUBLISHED = {
    MERGED: {(1, 128): "+0 %", (16, 256): "+0 %"},
    "Adapter^L, r=224": {(1, 128): "+20.7 %", (16, 256): "+5.0 %"},
    "Adapter^H, r=112": {(1, 128): "+30.3 %", (16, 256): "+8.4 %"},
}


def configs(blocks: int) -> dict[str, Any]:
    """Return {what people read: config} of a model with that many blocks."""
    dropped = max(1, round(5 * blocks / BLOCKS))
    return {
        MERGED: LORA,
        OPEN: LORA,
        "Adapter^H, r=112": ll.BottleneckConfig("H", 112),
        "Adapter^L, r=224": ll.BottleneckConfig("L", 224),
        "Adapter^P, r=224": ll.BottleneckConfig("P", 224),
        f"Adapter^D, r=224, {dropped} of {blocks} blocks dropped": ll.BottleneckConfig(
            "D", 224, drop_layers=dropped
        ),
        "PreEmbed, 8 + 8 tokens": ll.PrefixEmbedConfig(8, 8),
        "PreLayer, 8 + 8 tokens": ll.PrefixLayerConfig(8, 8),
        "BitFit": ll.BitFitConfig(),
    }


def gpt2(blocks: int) -> nn.Module:
    """Return GPT-2 medium with fewer blocks and random weights, which change no operation."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    vocabulary = VOCABULARY * blocks // BLOCKS
    config = GPT2Config(
        **MEDIUM, n_layer=blocks, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0
    )
    config.use_cache = False
    return GPT2LMHeadModel._from_config(config).eval()


@torch.no_grad()
def rows(blocks: int, batch: int, tokens: int, rounds: int) -> list[Row]:
    """Return every method's forward pass against the bare model's."""
    models = {BARE: gpt2(blocks), AGAIN: gpt2(blocks)}
    for name, config in configs(blocks).items():
        models[name] = gpt2(blocks)
        ll.attach(models[name], config)
    ll.merge(models[MERGED])
    ids = torch.randint(0, VOCABULARY * blocks // BLOCKS, (batch, tokens))
    runs = {name: partial(model.eval(), input_ids=ids) for name, model in models.items()}
    seconds = alternate(runs, rounds)
    found = []
    for name in (AGAIN, *configs(blocks)):
        ratio = median_ratio(seconds[name], seconds[BARE])
        paper = PUBLISHED.get(name, {}).get((batch, tokens))
        merged = name == MERGED
        found.append(
            Row(
                f"{batch} × {tokens} tokens: {name}",
                f"{ratio:.3f}×",
                "1.00 ± 0.01×" if merged else "",
                abs(ratio - 1) <= 0.01 if merged else None,
                f"paper {paper}" if paper else "",
            )
        )
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=2, help="of GPT-2 medium's 24")
    parser.add_argument("--rounds", type=int, help="of each shape")
    parser.add_argument("--batch", type=int, help="at most; the paper's go up to 16")
    args = parser.parse_args(argv)
    found = []
    for (batch, tokens), rounds in SHAPES.items():
        batch = min(batch, args.batch or batch)
        found += rows(args.blocks, batch, tokens, args.rounds or rounds)
        gc.collect()
    title = f"One forward pass against the bare model, {args.blocks} of GPT-2 medium's {BLOCKS}"
    print_table(f"{title} blocks, float32 on the CPU; bound 1.00×", found)


if __name__ == "__main__":
    main()
