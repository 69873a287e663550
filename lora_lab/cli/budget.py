"""`lora-lab budget`: what a plan costs, and what the paper printed for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lora_lab.budget.optimizers import OPTIMIZERS
from lora_lab.cli.command import Command, Report

if TYPE_CHECKING:
    from lora_lab.configs import MethodConfig
    from lora_lab.paper.rows import PublishedRow

_METHODS = (
    *("lora", "adalora", "ft", "ft-top2", "bitfit", "pre-embed", "pre-layer"),
    *("adapter-h", "adapter-l", "adapter-p", "adapter-d"),
)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a catalogue name, a hub id, or a folder with a config.json")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        action="append",
        choices=_METHODS,
        dest="methods",
        help="how to adapt (lora); more than once for a combination",
    )
    method.add_argument(
        "--r", type=int, default=8, help="rank of every target, width of adapters (8)"
    )
    method.add_argument("--init-r", type=int, help="AdaLoRA's rank at the start (1.5 times --r)")
    method.add_argument("--alpha", type=float, default=8, help="α; costs nothing (8)")
    method.add_argument("--targets", default="q,v", help='roles or modules, or "all-linear" (q,v)')
    method.add_argument(
        "--prefix-length", type=int, default=8, help="learned tokens before the prompt (8)"
    )
    method.add_argument(
        "--infix-length", type=int, default=8, help="learned tokens behind the prompt (8)"
    )
    method.add_argument(
        "--new-biases", action="store_true", help="BitFit: give linear layers a bias of zeros"
    )
    method.add_argument(
        "--drop-layers",
        type=int,
        help="Adapter^D: lowest blocks that answer without their adapters; costs nothing "
        "(5, or all but one)",
    )
    step = parser.add_argument_group("training step")
    step.add_argument("--batch-size", type=int, default=8, help="sequences a step (8)")
    step.add_argument("--sequence-length", type=int, default=128, help="tokens each (128)")
    step.add_argument("--dtype", help="of the base model: float32, bfloat16 or float16")
    step.add_argument("--optimizer", choices=list(OPTIMIZERS), default="adamw", help="(adamw)")
    step.add_argument(
        "--gradient-checkpointing", action="store_true", help="recompute blocks in the backward"
    )
    step.add_argument(
        "--padding-mask", action="store_true", help="sequences of several lengths in a batch"
    )
    step.add_argument(
        "--dry-run", action="store_true", help="take one step on fake tensors too; takes seconds"
    )


def _run(options: argparse.Namespace) -> Report:
    from lora_lab import paper
    from lora_lab.budget.forecast import budget

    configs = _configs(options)
    settings = {
        "batch_size": options.batch_size,
        "sequence_length": options.sequence_length,
        "dtype": options.dtype,
        "optimizer": options.optimizer,
        "gradient_checkpointing": options.gradient_checkpointing,
        "padding_mask": options.padding_mask,
    }
    found = budget(options.model, configs, **settings)
    report = Report(found.to_json(), str(found))
    if options.dry_run:
        report = _with_dry_runs(report, options.model, configs, settings)
    rows = paper.published_rows(paper.TABLES, options.model, configs)
    claims = paper.claims(options.model)
    if rows or claims:
        shown = [*map(_row_text, rows), *map(str, claims)]
        report.json["published"] = [row.to_json() for row in rows]
        report.json["claims"] = [claim.to_json() for claim in claims]
        report = Report(report.json, "\n".join([report.text, "", "in the paper:", *shown]))
    return report


def _with_dry_runs(
    report: Report, model: str, configs: list[MethodConfig], settings: dict[str, Any]
) -> Report:
    from lora_lab._util.format import format_bytes
    from lora_lab.budget.dry_run import dry_run

    runs = {
        "full": dry_run(model, **settings),
        "adapted": dry_run(model, configs, **settings),
    }
    for name, run in runs.items():
        report.json["memory"][name]["dry_run_peak"] = run.peak
    full, adapted = (format_bytes(run.peak) for run in runs.values())
    seconds = sum(run.seconds for run in runs.values())
    line = f"dry run: full fine-tuning {full}, this plan {adapted} at the peak ({seconds:.1f} s)"
    return Report(report.json, f"{report.text}\n{line}")


def _configs(options: argparse.Namespace) -> list[MethodConfig]:
    """Return one config for each --method, in their order."""
    from lora_lab import configs as c

    targets = options.targets
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",") if name.strip()]
    lora = {"lora_alpha": options.alpha, "target_modules": targets}
    tokens = {"prefix_length": options.prefix_length, "infix_length": options.infix_length}
    first_r = (3 * options.r + 1) // 2 if options.init_r is None else options.init_r
    make: dict[str, Callable[[], Any]] = {
        "lora": lambda: c.LoraConfig(r=options.r, **lora),
        "adalora": lambda: c.AdaLoraConfig(target_r=options.r, init_r=first_r, **lora),
        "ft": c.FullConfig,
        "ft-top2": lambda: c.FullConfig(top_layers=2),
        "bitfit": lambda: c.BitFitConfig(new_biases=options.new_biases),
        "pre-embed": lambda: c.PrefixEmbedConfig(**tokens),
        "pre-layer": lambda: c.PrefixLayerConfig(**tokens),
        "adapter-h": lambda: c.BottleneckConfig("H", options.r),
        "adapter-l": lambda: c.BottleneckConfig("L", options.r),
        "adapter-p": lambda: c.BottleneckConfig("P", options.r),
        "adapter-d": lambda: c.BottleneckConfig("D", options.r, options.drop_layers),
    }
    return [make[method]() for method in options.methods or ["lora"]]


def _row_text(row: PublishedRow) -> str:
    name = f"{row.method}, {row.setting}" if row.setting else row.method
    text = f"{row.table}, {name}: {row.printed}M, counted {row.count / 1e6:,.3f}M; {row.verdict}"
    return f"{text} ({row.note})" if row.note else text


BUDGET = Command("what a plan costs, against full fine-tuning", _arguments, _run)
