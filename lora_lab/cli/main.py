"""`main`: reads the command that it is given, and imports no other."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from lora_lab import __version__
from lora_lab._util.launcher import launched_processes
from lora_lab._util.python_private import end_without_finalizing
from lora_lab.cli.command import Command
from lora_lab.cli.output import Steady, steady_output
from lora_lab.errors import LoraLabError
from lora_lab.redaction import redacted_values

INCOMPLETE = 1  # exit status
BAD_INPUT = 2

# What the list of commands says of each; a command's own module is read when it is called.
COMMANDS = {
    "demo": "train on an embedded model and write a report",
    "train": "train from a run file; under torchrun on many GPUs",
    "sweep": "train a grid or random draws from a sweep file, here or on Ray",
    "compare": "hold methods against each other, each at its own rate, here or on Ray",
    "advise": "which method, targets, rank and rate to begin with, and why",
    "evaluate": "score a run's adapter on its test part, with every answer",
    "budget": "what a plan costs, against full fine-tuning",
    "inspect": "look into an adapter: spectra, directions, intruders",
    "export": "write an adapter for PEFT, vLLM, loralib, or merged",
    "runs": "the runs of a folder, with their scores",
    "models": "the models known by name",
    "tasks": "the tasks known by name",
    "glossary": "what a term means, in two sentences",
    "doctor": "what is installed and what is missing",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `lora-lab`; returns the exit status.

    Bad input gets one line on stderr that names the fix, and status 2. Status 1: it was reported
    on, but part of it has failed, or the report could not be written. Who reads the output may go
    away meanwhile, and the terminal may close.
    """
    with steady_output() as out:
        status = _run(arguments, out)
        out.flush()
        if out.problem:
            print(f"lora-lab: stdout cannot be written: {out.problem}", file=sys.stderr)
            status = status or INCOMPLETE
    return status


def program() -> NoReturn:
    """Run `lora-lab` as a process of its own, which ends with its exit status."""
    status = main()
    if launched_processes() > 1:
        end_without_finalizing(status)
    sys.exit(status)


def _run(arguments: Sequence[str] | None, out: Steady) -> int:
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        options = _parser(given).parse_args(given)
        report = options.call(options)
    except LoraLabError as error:
        print(f"lora-lab: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 130  # as shells have it
    if report is None:
        return 0
    if options.json:  # its numbers stay, whoever has one for a password
        out.write_styled(json.dumps(redacted_values(report.json), indent=2) + "\n")
    else:
        print(report.text)
    return 0 if report.complete else INCOMPLETE


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser of all commands' names, and of the arguments of the one that is given."""
    parser = _Parser(prog="lora-lab", description="A workbench for low-rank adaptation.")
    parser.add_argument("--version", action="version", version=f"lora-lab {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == next(iter(given), None):
            command: Command = importlib.import_module(f"lora_lab.cli.{name}").COMMAND
            command.arguments(subparser)
            subparser.add_argument("--json", action="store_true", help="print one JSON object")
            subparser.set_defaults(call=command.run)
    return parser
