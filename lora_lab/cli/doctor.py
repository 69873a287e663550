"""`lora-lab doctor`: what is installed and what is missing."""

from __future__ import annotations

import argparse

from lora_lab.cli import installed
from lora_lab.cli.command import Command, Report, no_arguments


def _run(_options: argparse.Namespace) -> Report:

    found = installed.examine()
    return Report(found, installed.as_text(found))


COMMAND = Command(no_arguments, _run)
