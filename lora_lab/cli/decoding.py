"""Flags that say how answers are written: those of `tasks.Decoding`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from lora_lab._util.yaml import value_of
from lora_lab.tasks.decoding import Decoding


def decoding_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field."""
    group = parser.add_argument_group("decoding", "how answers that are scored are written")
    for field in dataclasses.fields(Decoding):
        group.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, metavar="VALUE")


def decoding_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that were given, read as a run file's are."""
    names = [field.name for field in dataclasses.fields(Decoding)]
    given = {name: text for name in names if (text := getattr(options, name)) is not None}
    return {name: value_of(text) for name, text in given.items()}
