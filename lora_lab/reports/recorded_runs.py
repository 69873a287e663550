"""What runs on disk add to an inspection: the steps of one, and a map over many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lora_lab._util.files import user_path
from lora_lab.analysis.capacity import run_capacity
from lora_lab.analysis.steps import step_maps
from lora_lab.analysis.sweep import comparable_runs, sweep_map
from lora_lab.errors import RunError
from lora_lab.reports.inspection import Inspection
from lora_lab.runs.history import read_history
from lora_lab.runs.records import list_runs


def with_run(inspection: Inspection, folder: Path) -> Inspection:
    """Add the maps over a run's steps, and what its adapter can hold."""
    return replace(inspection, steps=step_maps(read_history(folder)), capacity=run_capacity(folder))


def with_own_run(inspection: Inspection, folder: Path) -> Inspection:
    """Add the same of the run that the adapter was found in; an older one has no history."""
    try:
        return with_run(inspection, folder)
    except RunError as error:
        return replace(inspection, notes=(*inspection.notes, str(error)))


def with_sweep(inspection: Inspection, folder: str | Path) -> Inspection:
    """Add the map of the largest group of comparable runs in a folder."""
    if not user_path(folder, RunError).is_dir():
        raise RunError(f"there is no folder {folder}; name the one that holds the runs")
    records = list_runs(folder)
    groups = comparable_runs(records)
    sweep = sweep_map(groups[0] if groups else records)
    if len(groups) < 2:
        return replace(inspection, sweep=sweep)
    note = f"the sweep shows {len(groups[0])} comparable runs of the {len(records)} in {folder}"
    return replace(inspection, sweep=sweep, notes=(*inspection.notes, note))
