"""`lora-lab`: the command line. One subcommand a file, one entry each in `COMMANDS`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from lora_lab.cli.budget import BUDGET
from lora_lab.cli.command import Command
from lora_lab.cli.demo import DEMO
from lora_lab.cli.doctor import DOCTOR
from lora_lab.cli.export import EXPORT
from lora_lab.cli.inspect import INSPECT
from lora_lab.cli.sweep import SWEEP
from lora_lab.cli.train import TRAIN
from lora_lab.errors import LoraLabError

INCOMPLETE = 1  # exit status
BAD_INPUT = 2

COMMANDS: dict[str, Command] = {
    "demo": DEMO,
    "train": TRAIN,
    "sweep": SWEEP,
    "budget": BUDGET,
    "inspect": INSPECT,
    "export": EXPORT,
    "doctor": DOCTOR,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lora-lab`; returns the exit status.

    Bad input gets one line on stderr that names the mend, and status 2. Status 1: it was reported
    on, but part of it has failed.
    """
    try:
        options = _parser().parse_args(arguments)
        report = COMMANDS[options.command].run(options)
    except LoraLabError as error:
        print(f"lora-lab: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130  # as shells have it
    if report is None:
        return 0
    print(json.dumps(report.json, indent=2) if options.json else report.text)
    return 0 if report.complete else INCOMPLETE


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
