"""`lora-lab runs`: the runs of a folder, the newest first."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from lora_lab._util.tables import Table
from lora_lab.cli.command import Command, Report
from lora_lab.runs.records import RunRecord, list_runs
from lora_lab.tasks.metrics import changes, in_words


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="runs", help="where runs are (runs)")


def _run(options: argparse.Namespace) -> Report:

    found = [_told(record) for record in list_runs(options.folder)]
    if not found:
        return Report({"runs": []}, f"no runs in {options.folder}")
    names = ["id", "state", "model", "task", "method", "steps"]
    names += [name for name in ("title", "note") if any(run[name] for run in found)]
    if any(run["starred"] for run in found):
        names.insert(0, "starred")
    rows = tuple((*(_cell(run[name]) for name in names), _scores(run["metrics"])) for run in found)
    return Report({"runs": found}, str(Table((*names, "scores"), rows, frozenset({"steps"}))))


def _cell(value: Any) -> str:
    """Return a value on one line: a star as a star."""
    return ("★" if value else "") if isinstance(value, bool) else " ".join(str(value).split())


def _told(record: RunRecord) -> dict[str, Any]:
    config, summary, marks = record.config, record.summary or {}, record.marks
    return {
        "id": record.id,
        "state": str(record.state),
        "model": str((config.get("model") or {}).get("name") or ""),
        "task": str((config.get("task") or {}).get("name") or ""),
        "method": str(config.get("method") or ""),
        "steps": summary.get("steps", ""),
        "metrics": dict(summary.get("metrics") or {}),
        **dataclasses.asdict(marks),
    }


def _scores(metrics: dict[str, Any]) -> str:
    """Return each score before and after: "loss 2.31 → 1.20"; of the base alone it says so."""
    return ", ".join(in_words(changes(metrics), lambda metric: metric.label))


COMMAND = Command(_arguments, _run)
