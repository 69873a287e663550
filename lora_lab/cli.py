"""`lora-lab`: the command line. Each subcommand is a function in `COMMANDS`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lora_lab.errors import LoraLabError

BAD_INPUT = 2  # exit status


@dataclass(frozen=True)
class Report:
    """What a subcommand found: for `--json`, and for people."""

    json: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Command:
    """A subcommand: its line in the help, its arguments, what it does."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Report]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lora-lab`; returns the exit status.

    Bad input gets one line on stderr that names the mend, and status 2.
    """
    try:
        options = _parser().parse_args(arguments)
        report = COMMANDS[options.command].run(options)
    except LoraLabError as error:
        print(f"lora-lab: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130  # as shells have it
    print(json.dumps(report.json, indent=2) if options.json else report.text)
    return 0


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lora-lab", description="A workbench for low-rank adaptation.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.summary, description=command.summary)
        command.arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _budget_arguments(parser: argparse.ArgumentParser) -> None:
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


def _budget(options: argparse.Namespace) -> Report:
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


def _no_arguments(_parser: argparse.ArgumentParser) -> None:
    """For a subcommand that has only `--json`."""


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="what to train (smollm2-135m)")
    parser.add_argument("--task", default="mini-e2e", help="on what (mini-e2e)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (40)")
    parser.add_argument("--output-dir", default="runs", help="where the run's folder goes (runs)")


def _demo(options: argparse.Namespace) -> Report:
    from lora_lab.demo import demo

    found = demo(options.model, options.task, options.steps, options.output_dir, quiet=options.json)
    return Report(found, f"adapter  {found['adapter']}\nreport   {found['report']}")


def _doctor(_options: argparse.Namespace) -> Report:
    from lora_lab import _doctor

    found = _doctor.examine()
    return Report(found, _doctor.as_text(found))


# A new subcommand: its two functions above, one entry here.
COMMANDS: dict[str, Command] = {
    "demo": Command("train on an embedded model and write a report", _demo_arguments, _demo),
    "budget": Command("what a plan costs, against full fine-tuning", _budget_arguments, _budget),
    "doctor": Command("what is installed and what is missing", _no_arguments, _doctor),
}


if __name__ == "__main__":
    sys.exit(main())
