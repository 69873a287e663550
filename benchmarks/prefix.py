"""PreEmbed and PreLayer against PEFT's PromptTuning and PrefixTuning: a training step's time.

`python -m benchmarks.prefix` runs ours and PEFT's in turn in one process; a row is the median of
the rounds' ratios. PreEmbed without an infix and PromptTuning are the same computation. PreLayer
and PrefixTuning are not: ours learns what enters each block, at places that attention walks
through, PEFT's the keys and values of places that no query walks through.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lora_lab as ll
from benchmarks._measure import Row, alternate, median_ratio, print_table
from benchmarks.adapters import SMOLLM2, bare, llama, stepper

PAIRS = {
    "PreEmbed": (ll.PrefixEmbedConfig, "PromptTuning"),
    "PreLayer": (ll.PrefixLayerConfig, "PrefixTuning"),
}


def ours(model: nn.Module, kind: type, tokens: int) -> nn.Module:
    """Attach learned tokens in front of the prompt."""
    ll.attach(model, kind(prefix_length=tokens, infix_length=0))
    return model


def pefts(model: nn.Module, kind: str, tokens: int) -> Any:
    """Attach PEFT's method with as many virtual tokens."""
    import peft

    config = getattr(peft, f"{kind}Config")
    return peft.get_peft_model(model, config(task_type="CAUSAL_LM", num_virtual_tokens=tokens))


def rows(args: argparse.Namespace) -> list[Row]:
    """Return a row a method, and one of the floor."""
    found = []
    shape = {**SMOLLM2, "num_hidden_layers": args.blocks}
    text = args.batch * args.length
    for method, (kind, peer) in PAIRS.items():
        models = {
            "ours": ours(llama(shape), kind, args.tokens),
            "peft": pefts(llama(shape), peer, args.tokens),
            "floor": bare(llama(shape)),
        }
        learned = {
            name: sum(p.numel() for p in model.parameters() if p.requires_grad)
            for name, model in models.items()
        }
        runs: dict[str, Callable[[], object]] = {
            name: stepper(model, args.batch, args.length, "cpu", torch.float32)
            for name, model in models.items()
        }
        runs["ours again"] = runs["ours"]  # the noise
        seconds = alternate(runs, args.rounds)
        ratios = {name: median_ratio(taken, seconds["peft"]) for name, taken in seconds.items()}
        noise = median_ratio(seconds["ours again"], seconds["ours"])
        found.append(
            Row(
                f"{method} against PEFT's {peer}, step of {text} + {args.batch} × {args.tokens} "
                "tokens",
                f"{ratios['ours']:.3f}×",
                "",
                None,
                f"bound {ratios['floor']:.3f}×: no learned token, gradient chain only; ours again "
                f"{noise:.3f}×; {learned['ours']:,} numbers against {learned['peft']:,}",
            )
        )
    return found


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=30, help="of SmolLM2-135M's shape (30)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="learned ones (16)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    title = f"learned tokens, SmolLM2-135M shape, {args.blocks} blocks, float32"
    print_table(title, rows(args))


if __name__ == "__main__":
    main()
