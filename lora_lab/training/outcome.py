"""What a run leaves when it is over, as an object and as a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.errors import RunError
from lora_lab.redaction import shown_redacted
from lora_lab.runs.samples import Sample
from lora_lab.training.snapshot import RunState

if TYPE_CHECKING:
    from lora_lab.training.run import Run


@shown_redacted
@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves."""

    id: str
    folder: Path
    adapter_folder: Path  # PEFT reads it
    metrics: dict[str, float]  # loss_before loss_after bleu_before … or accuracy_before …
    losses: tuple[tuple[int, float], ...]  # (step, nats per token, or a text with a class)
    samples: tuple[Sample, ...]
    evaluations: tuple[Mapping[str, float], ...]  # {"step": …, "loss": …, …} while it trained
    best_step: int | None  # of the best of them
    seconds: float  # trained time, pauses left out
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of metrics, of 95 %
    evaluated: tuple[int, int] | None = None  # held-out examples scored, of how many there are


def result_of(run: Run) -> RunResult:
    """Return what a run that is over leaves.

    Raises:
        RunError: it failed; the cause is attached.
    """
    seen = run.snapshot
    if seen.state is RunState.FAILED:
        raise RunError(f"{run.title} failed: {_why(run)}") from run.error
    return RunResult(
        id=run.id,
        folder=run.folder,
        adapter_folder=run.folder / "adapter",
        metrics=dict(seen.metrics),
        losses=run.losses,
        samples=run.samples,
        evaluations=seen.evaluations,
        best_step=seen.best_step,
        seconds=seen.elapsed_seconds,
        intervals=dict(seen.intervals),
        evaluated=seen.evaluated,
    )


def outcome_of(run: Run) -> str:
    """Return in one line how a run has ended, or stands, and how to go on with it."""
    seen, again = run.snapshot, f"ll.resume({str(run.folder)!r})"
    at = f"step {seen.step} of {seen.total_steps}"
    if seen.state is RunState.FAILED:
        return f"{run.title} failed at {at}: {_why(run)}"
    if not seen.state.final:
        return f"{run.title} was cut off after {at}; {again} goes on from its last checkpoint"
    if seen.step == seen.total_steps or seen.stopped_early:
        return f"{run.title} is done: {at}; its adapter is in {run.folder / 'adapter'}"
    if run.adapter is None:
        return f"{run.title} was queued and has not begun; call train() again"
    return f"{run.title} ended at {at}; {again} goes on from there"


def _why(run: Run) -> str:
    failure = run.snapshot.failure
    return f"{failure.message}; {failure.remedy}".rstrip("; ") if failure else "it failed"
