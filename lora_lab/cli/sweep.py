"""`lora-lab sweep`: many runs from a file, here or on a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_lab._util.format import plural
from lora_lab.cli.command import Command, Report
from lora_lab.runs.records import RunRecord, list_runs
from lora_lab.sweeps.cells import Cell, skipped_fields
from lora_lab.sweeps.cluster import sweep_on_ray
from lora_lab.sweeps.local import Sweep
from lora_lab.sweeps.peft_comparison import FOLDER, check_export, export_peft_comparison
from lora_lab.sweeps.plan import SweepPlan
from lora_lab.sweeps.store import CellResult
from lora_lab.tasks.load import load_task

_LOOKS = 1.0  # seconds between two looks at the sweep


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a sweep file")
    add_cluster(parser)
    add_export(parser)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the options of what `sweep_on_ray` trains."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help='train on a Ray cluster: its address, "auto", or nothing to start one here',
    )
    parser.add_argument("--gpus", type=float, help="GPUs a cell takes on the cluster")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the option that `exported` serves."""
    parser.add_argument(
        "--export",
        choices=[FOLDER],
        help="write the runs as files of PEFT's method comparison, too",
    )


def _run(options: argparse.Namespace) -> Report:
    plan = SweepPlan.read(options.plan)
    if options.export:
        check_export(load_task(**plan.run_config.task), plan.cells())
    if options.ray is not None:
        results = sweep_on_ray(plan, options.ray or None, options.gpus)
    else:
        results = _here(plan, quiet=options.json)
    cells = plan.cells()
    complete = all(cell.id in results and results[cell.id].state != "failed" for cell in cells)
    told, text = _json(plan, cells, results), _text(plan, cells, results)
    if options.export:
        ended = {result.run for result in results.values() if result.state == "done"}
        runs = [run for run in list_runs(plan.folder) if run.folder.name in ended]
        told, text = exported(told, text, runs, plan.folder / FOLDER)
    return Report(told, text, complete)


def exported(
    told: dict[str, Any], text: str, runs: Iterable[RunRecord], folder: Path
) -> tuple[dict[str, Any], str]:
    """Write runs in the layout of PEFT's comparison; return the report, which now says so."""
    files = export_peft_comparison(runs, folder)
    line = f"{plural(len(files), 'file')} in the layout of PEFT's comparison: {folder}"
    return {**told, "exported": list(map(str, files))}, f"{text}\n{line}"


def watch(sweep: Sweep, quiet: bool, called: str = "") -> None:
    """Wait until a sweep is over, and say on stderr how many of its cells have ended.

    Args:
        sweep: that trains.
        quiet: say nothing.
        called: what stands before the numbers, of several sweeps.
    """
    told = sweep.snapshot.skipped
    while not sweep.wait(_LOOKS):
        seen = sweep.snapshot
        if not quiet and len(seen.ended) > told:
            told = len(seen.ended)
            print(f"{called}{told} of {seen.total} cells", file=sys.stderr, flush=True)


def _here(plan: SweepPlan, quiet: bool) -> dict[str, CellResult]:
    lm, task = plan.load()
    made = Sweep(lm, task, plan.cells(), plan.folder, plan.asha).start()
    try:
        watch(made, quiet)
    except KeyboardInterrupt:
        made.stop()
        made.wait()
    return made.results()


def _json(
    plan: SweepPlan, cells: tuple[Cell, ...], results: Mapping[str, CellResult]
) -> dict[str, Any]:
    rows = []
    for cell in cells:
        ended = results.get(cell.id)
        rows.append(
            {
                "cell": cell.id,
                "changes": dict(cell.changes),
                "state": ended.state if ended else "open",
                "run": ended.run if ended else None,
                "steps": ended.step if ended else 0,
                "metrics": dict(ended.metrics) if ended else {},
                "problem": ended.problem if ended else "",
            }
        )
    return {"folder": str(plan.folder), "cells": rows}


def _text(plan: SweepPlan, cells: tuple[Cell, ...], results: Mapping[str, CellResult]) -> str:
    width = max(len(str(cell)) for cell in cells)
    lines = []
    for cell in cells:
        ended = results.get(cell.id)
        facts = "open" if ended is None else ended.problem or ended.state
        scores = {} if ended is None else ended.metrics
        shown = "  ".join(
            f"{name} {value:.4g}" for name, value in scores.items() if name.endswith("_after")
        )
        lines.append(f"{cell!s:<{width}}  {facts:<14}{shown}".rstrip())
    if skipped := skipped_fields(cells, [*plan.space.grid, *plan.space.random]):
        lines.append(f"{skipped}: trained once for all of its values")
    count = f"{len(results)} of {plural(len(cells), 'cell')} ended"
    if failed := sum(result.state == "failed" for result in results.values()):
        count += f", {failed} failed: call it again to try them again"
    return "\n".join([*lines, f"{count}; runs are in {plan.folder}"])


COMMAND = Command(_arguments, _run)
