"""AdaLoRA after its last cut against LoRA of the same mean rank: step and memory.

`python -m benchmarks.adalora`. Both run in turn in one process, regularizer included, and the row
is the median of the rounds' ratios. The cut itself comes after two steps on random data: what
counts here is that ranks differ from matrix to matrix, not which ones are left.
"""

from __future__ import annotations

import argparse
import gc
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

import lora_lab as ll
from benchmarks._measure import Row, alternate, median_ratio, print_table
from benchmarks.adapters import SMOLLM2, at_most, llama
from lora_lab.budget.meter import LiveStorages
from lora_lab.methods.base import Adapter

STEPS = 1_000
TARGETS = "all-linear"
ADALORA = ll.AdaLoraConfig(
    target_r=8, init_r=12, lora_alpha=16, tfinal=STEPS - 2, target_modules=TARGETS
)
LORA = ll.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS)
Made = tuple[nn.Module, Adapter, Callable[[], None]]


def made(config: ll.LoraConfig | ll.AdaLoraConfig, args: argparse.Namespace) -> Made:
    """Return a model, its adapter and one training step."""
    model = llama(args.shape)
    adapter = ll.attach(model, config)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3)
    adapter.begin_training(optimizer, STEPS)
    generator = torch.Generator().manual_seed(1)
    shape = args.batch, args.length
    ids = torch.randint(0, args.shape["vocab_size"], shape, generator=generator)

    def step() -> None:
        loss = model(input_ids=ids, labels=ids).loss
        if (penalty := adapter.penalty()) is not None:
            loss = loss + penalty
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, adapter, step


def peak(model: nn.Module, step: Callable[[], None]) -> int:
    """Return the most bytes of tensors alive during a step."""
    counter = LiveStorages([*(p.detach() for p in model.parameters()), *model.buffers()])
    with counter:
        step()
    return counter.peak


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=30, help="fewer: a quick try")
    args = parser.parse_args(argv)
    # The vocabulary shrinks with the layers, so that their shares of the work stay as they are.
    vocabulary = SMOLLM2["vocab_size"] * args.layers // 30
    args.shape = {**SMOLLM2, "num_hidden_layers": args.layers, "vocab_size": vocabulary}

    model, adapter, adaptive = made(ADALORA, args)
    before = adapter.trainable
    for _ in range(2):
        adaptive()
    ranks = Counter(adapter.ranks.values())
    plain_model, plain_adapter, plain = made(LORA, args)
    for _ in range(2):
        plain()
    gc.collect()
    peaks = peak(model, adaptive), peak(plain_model, plain)
    seconds = alternate({"adalora": adaptive, "lora": plain}, args.rounds)
    spread = ", ".join(f"{count} of rank {r}" for r, count in sorted(ranks.items()))
    tokens = args.batch * args.length
    rows: list[Row] = [
        at_most(
            f"training step, {tokens} tokens, float32, CPU",
            median_ratio(seconds["adalora"], seconds["lora"]),
            1.05,
            f"regularizer included; {spread}",
        ),
        at_most(
            "its peak of live tensors",
            peaks[0] / peaks[1],
            1.05,
            " against ".join(f"{size / 2**20:,.0f} MiB" for size in peaks),
        ),
        at_most(
            "trained parameters",
            adapter.trainable / plain_adapter.trainable,
            1.05,
            f"{adapter.trainable:,} after the cut, {before:,} before; "
            f"LoRA {plain_adapter.trainable:,}",
        ),
    ]
    print_table("AdaLoRA after its last cut against LoRA, SmolLM2-135M shape, mean rank 8", rows)


if __name__ == "__main__":
    main()
