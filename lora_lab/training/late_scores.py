"""What a run that was stopped has learned, scored afterwards, as its end would have been."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab._util.json_files import read_json
from lora_lab.errors import RunError, as_cause
from lora_lab.runs.lock import RunLock
from lora_lab.runs.records import SAMPLES_FILE, SUMMARY_FILE, RecordState, RunRecord, find_run
from lora_lab.runs.run_file import read_configs
from lora_lab.runs.store import RunStore
from lora_lab.training.evaluate import Evaluated, evaluate
from lora_lab.training.run import Run

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task


def unscored(of: Run | RunRecord) -> bool:
    """Return whether a run was stopped before it was scored as its base was; reads no file of it.

    Args:
        of: a run, or one on disk.
    """
    if isinstance(of, Run):
        seen = of.snapshot
        stopped = 0 < seen.step < seen.total_steps and not seen.stopped_early
        return of.state.final and seen.failure is None and stopped and _base_alone(seen.metrics)
    metrics = (of.summary or {}).get("metrics")
    return of.state is RecordState.STOPPED and isinstance(metrics, dict) and _base_alone(metrics)


def score_end(of: Run | RunRecord, lm: LoadedModel, task: Task | None = None) -> Evaluated:
    """Score the adapter of a run that was stopped, on the held-out examples that its base was.

    The scores go into its summary.json as "…_after", and the answers into its samples.json.

    Args:
        of: a run that is over, or one on disk.
        lm: the base model, in memory.
        task: the data of a run on disk, where they are in memory already.

    Raises:
        RunError: the run is not over, has left no adapter, or the disk does not take the scores.
        TaskError: its data have no held-out examples, or cannot be loaded any more.
        AdapterError: it is of another base.
    """
    record = find_run(of.folder) if isinstance(of, Run) else of
    if record.summary is None:
        raise RunError(f"run {record.id} is not over; wait for its end, or stop it")
    training = of.training if isinstance(of, Run) else read_configs(record)[1]
    found = evaluate(
        of,
        task,
        part="validation",
        lm=None if isinstance(of, Run) else lm,
        max_examples=training.eval_examples or None,
    )
    after = {f"{name}_after": value for name, value in found.scores.items()}
    intervals = {f"{name}_after": pair for name, pair in found.intervals.items()}
    _note(record.folder, found, after, intervals)
    if isinstance(of, Run):
        seen = of.snapshot
        of.samples = tuple(
            dataclasses.replace(sample, adapted=str(row["prediction"]))
            for sample, row in zip(of.samples, found.predictions, strict=False)
        )
        of.publish(
            metrics={**seen.metrics, **after},
            intervals={**seen.intervals, **intervals},
            evaluated=(found.examples, found.of),
        )
    return found


def _note(folder: Path, found: Evaluated, after: dict[str, Any], intervals: dict[str, Any]) -> None:
    """Add scores to a run's files, which nobody else is at work on meanwhile."""
    store, lock = RunStore(folder), RunLock(folder)
    lock.acquire()
    try:
        summary = _read(folder / SUMMARY_FILE, dict[str, Any])
        samples = _read(folder / SAMPLES_FILE, list[dict[str, Any]], [])
        for sample, row in zip(samples, found.predictions, strict=False):
            sample["adapted"] = row["prediction"]
        summary["metrics"] = {**summary.get("metrics", {}), **after}
        summary["intervals"] = {**summary.get("intervals", {}), **intervals}
        summary["evaluated"] = {"examples": found.examples, "of": found.of}
        store.write_json(SAMPLES_FILE, samples)
        store.write_json(SUMMARY_FILE, summary)
    finally:
        lock.release()


def _read(path: Path, kind: Any, otherwise: Any = None) -> Any:
    try:
        return read_json(path, kind)
    except (OSError, ValueError) as error:
        if otherwise is not None:
            return otherwise
        raise RunError(f"{path} cannot be read: {error}; the scores are not noted") from as_cause(
            error
        )


def _base_alone(metrics: Mapping[str, Any]) -> bool:
    """Whether there are scores of the base model, and none of what was learned."""
    return {name.rpartition("_")[2] for name in metrics} & {"before", "after"} == {"before"}
