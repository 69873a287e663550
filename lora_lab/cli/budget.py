"""`lora-lab budget`: what a plan costs."""

from __future__ import annotations

import argparse

from lora_lab.cli.command import Command, Report


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a catalogue name, a hub id, or a folder with a config.json")
    parser.add_argument("--method", choices=["lora"], default="lora", help="how to adapt")
    parser.add_argument("--r", type=int, default=8, help="rank of every target (8)")
    parser.add_argument("--alpha", type=float, default=8, help="α; costs nothing (8)")
    parser.add_argument("--targets", default="q,v", help='roles or modules, or "all-linear" (q,v)')
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step (8)")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens each (128)")
    parser.add_argument("--dtype", help="of the base model: float32, bfloat16 or float16")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute blocks in the backward"
    )


def _run(options: argparse.Namespace) -> Report:
    from lora_lab.budget import budget
    from lora_lab.configs import LoraConfig

    targets = options.targets
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",") if name.strip()]
    found = budget(
        options.model,
        LoraConfig(r=options.r, lora_alpha=options.alpha, target_modules=targets),
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        dtype=options.dtype,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    return Report(found.to_json(), str(found))


BUDGET = Command("what a plan costs, against full fine-tuning", _arguments, _run)
