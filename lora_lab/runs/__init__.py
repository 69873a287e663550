"""Runs: training in the background, watched, paused, and kept on disk."""

from lora_lab.runs.run import Run, RunResult, train
from lora_lab.runs.samples import Sample
from lora_lab.runs.snapshot import Factors, Problem, RunState, Snapshot, Spectra
from lora_lab.runs.store import RunRecord, list_runs

__all__ = [
    "Factors",
    "Problem",
    "Run",
    "RunRecord",
    "RunResult",
    "RunState",
    "Sample",
    "Snapshot",
    "Spectra",
    "list_runs",
    "train",
]
