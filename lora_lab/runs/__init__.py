"""Runs: training in the background, watched, paused, and kept on disk."""

import sys
from types import ModuleType
from typing import Any

from lora_lab.runs.records import OpenedRun, RecordState, RunRecord, list_runs
from lora_lab.runs.resuming import resume
from lora_lab.runs.run import Run, RunResult, train
from lora_lab.runs.samples import Sample
from lora_lab.runs.snapshot import Factors, Problem, RunState, Snapshot, Spectra

__all__ = [
    "Factors",
    "OpenedRun",
    "Problem",
    "RecordState",
    "Run",
    "RunRecord",
    "RunResult",
    "RunState",
    "Sample",
    "Snapshot",
    "Spectra",
    "list_runs",
    "resume",
    "runs",
    "train",
]

runs = list_runs


class _Callable(ModuleType):
    """`lora_lab.runs` is this package, and called it lists the runs: `lora_lab.runs()`."""

    def __call__(self, *arguments: Any, **options: Any) -> list[RunRecord]:
        return list_runs(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
