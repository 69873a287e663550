"""Runs found on disk: what they were, how they stand, and what they left."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.errors import RunError
from lora_lab.runs import checkpoints, lock

if TYPE_CHECKING:
    from lora_lab.analysis.history import SpectraHistory
    from lora_lab.models import LoadedModel
    from lora_lab.runs.run import Run
    from lora_lab.tasks import ClassificationTask, Task

METRICS_FILE = "metrics.jsonl"


class RecordState(StrEnum):
    """How a run on disk stands."""

    RUNNING = "running"  # in this process
    ELSEWHERE = "running elsewhere"  # in another one
    CUT_OFF = "cut off"  # its process was killed, or is gone
    DONE = "done"
    STOPPED = "stopped"  # on request, before its last step
    FAILED = "failed"


@dataclass(frozen=True)
class OpenedRun:
    """What a run's files hold.

    Attributes:
        rows: the lines of metrics.jsonl: step, loss, learning_rate, tokens, seconds.
        metrics: its scores before and after, as far as they are known.
        samples: the held-out prompts with their answers, once it is over.
        history: ΔW's spectra step by step; None where none were kept.
        checkpoints: {step: folder}, ascending; `load_adapter` reads them.
        adapter_folder: the adapter at the end; None before.
    """

    rows: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...]
    history: SpectraHistory | None
    checkpoints: Mapping[int, Path]
    adapter_folder: Path | None

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """(step, loss) of every step."""
        return tuple((row["step"], row["loss"]) for row in self.rows if "loss" in row)


@dataclass(frozen=True)
class RunRecord:
    """One run found on disk."""

    id: str
    folder: Path
    config: Mapping[str, Any]  # config.json
    summary: Mapping[str, Any] | None  # summary.json; None: still running, or cut off

    @property
    def state(self) -> RecordState:
        """How it stands now."""
        if (who := lock.holder(self.folder)) is not None:
            here = who.get("pid") == os.getpid()
            return RecordState.RUNNING if here else RecordState.ELSEWHERE
        try:
            return RecordState(str((self.summary or {}).get("state")))
        except ValueError:
            return RecordState.CUT_OFF

    def open(self) -> OpenedRun:
        """Read what it left. What is missing or damaged is left out, never raised."""
        from lora_lab.analysis import read_history

        try:
            history = read_history(self.folder)
        except RunError:
            history = None
        samples = _read_json(self.folder / "samples.json", list)
        metrics = (self.summary or {}).get("metrics")
        adapter = self.folder / "adapter"
        return OpenedRun(
            rows=tuple(read_metrics(self.folder)),
            metrics=dict(metrics) if isinstance(metrics, dict) else {},
            samples=tuple(row for row in samples or () if isinstance(row, dict)),
            history=history,
            checkpoints=dict(reversed(checkpoints.folders(self.folder))),
            adapter_folder=adapter if adapter.is_dir() else None,
        )

    def resume(
        self, lm: LoadedModel | None = None, task: Task | ClassificationTask | None = None
    ) -> Run:
        """Go on from the last checkpoint; see `lora_lab.resume`."""
        from lora_lab.runs.resuming import resume

        return resume(self, lm, task)


def list_runs(output_dir: str | os.PathLike[str] = "runs") -> list[RunRecord]:
    """Return the runs under `output_dir` that have a readable config.json, newest first."""
    found = map(read_record, Path(output_dir).expanduser().resolve().glob("*/"))
    return sorted(filter(None, found), key=lambda record: record.id, reverse=True)


def find_run(
    run: RunRecord | str | os.PathLike[str], output_dir: str | os.PathLike[str] = "runs"
) -> RunRecord:
    """Return a run by its id or its folder, as it stands now.

    Raises:
        RunError: there is none.
    """
    if isinstance(run, RunRecord):
        folder = run.folder
    else:
        parent = Path(output_dir).expanduser().resolve()
        # A plain name is an id, and stays below the folder of the runs.
        plain = isinstance(run, str) and run == Path(run).name
        folder = parent / run if plain else Path(run).expanduser().resolve()
        if plain and not folder.is_dir() and Path(run).is_dir():
            folder = Path(run).resolve()
    record = read_record(folder)
    if record is None:
        raise RunError(f"there is no run in {folder}; ll.runs() lists those that can be opened")
    return record


def read_record(folder: Path) -> RunRecord | None:
    """Return the run in a folder, None where there is none."""
    config = _read_json(folder / "config.json", dict)
    if config is None:
        return None
    return RunRecord(folder.name, folder, config, _read_json(folder / "summary.json", dict))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a run's metrics.jsonl; none where it cannot be read."""
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines if line]
    except (OSError, ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)]


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None
