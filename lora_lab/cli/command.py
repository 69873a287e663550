"""What a subcommand is, and what it gives back."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """What a subcommand found: for `--json`, for people, and for the shell."""

    json: dict[str, Any]
    text: str
    complete: bool = True  # False: part of what was asked for has failed or was not done


@dataclass(frozen=True)
class Command:
    """A subcommand: its arguments, and what it does.

    Of several processes only the first reports; in the others `run` returns None.
    """

    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Report | None]


def no_arguments(_parser: argparse.ArgumentParser) -> None:
    """For a subcommand that has only `--json`."""
