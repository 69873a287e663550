"""`lora-lab runs`: the runs of a folder, the newest first."""

from __future__ import annotations

import argparse
from typing import Any

from lora_lab._util.format import format_number
from lora_lab._util.tables import Table
from lora_lab.cli.command import Command, Report
from lora_lab.runs.records import RunRecord, list_runs
from lora_lab.tasks.metrics import changes


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", help="where runs are (runs)")


def _run(options: argparse.Namespace) -> Report:

    found = [_told(record) for record in list_runs(options.folder)]
    if not found:
        return Report({"runs": []}, f"no runs in {options.folder}")
    names = ("id", "state", "model", "task", "method", "steps")
    rows = tuple((*(str(run[name]) for name in names), _scores(run["metrics"])) for run in found)
    return Report({"runs": found}, str(Table((*names, "scores"), rows, frozenset({"steps"}))))


def _told(record: RunRecord) -> dict[str, Any]:
    config, summary = record.config, record.summary or {}
    return {
        "id": record.id,
        "state": str(record.state),
        "model": str((config.get("model") or {}).get("name") or ""),
        "task": str((config.get("task") or {}).get("name") or ""),
        "method": str(config.get("method") or ""),
        "steps": summary.get("steps", ""),
        "metrics": dict(summary.get("metrics") or {}),
    }


def _scores(metrics: dict[str, Any]) -> str:
    """Return each score before and after: "loss 2.31 → 1.20"."""
    found = []
    for metric, before, after in changes(metrics):
        numbers = [format_number(value) for value in (before, after) if value is not None]
        found.append(f"{metric.label} {' → '.join(numbers)}")
    return ", ".join(found)


COMMAND = Command(_arguments, _run)
