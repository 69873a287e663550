"""`lora-lab doctor`: what is installed and what is missing."""

from __future__ import annotations

import argparse

from lora_lab.cli import installed
from lora_lab.cli.command import Command, Report


def _arguments(_parser: argparse.ArgumentParser) -> None:
    """For a subcommand that has only `--json`."""


def _run(_options: argparse.Namespace) -> Report:

    found = installed.examine()
    return Report(found, installed.as_text(found))


COMMAND = Command(_arguments, _run)
