"""A run as the browser gets it: plain JSON, a few KB at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_lab.budget.reading import MemoryReading
from lora_lab.tasks.metrics import changes, sureness
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.error_json import MAX_LINE

MAX_POINTS = 200  # of a loss curve, a message
MAX_DEVICES = 16  # of a model that lies on several


def describe(snapshot: Snapshot | None) -> dict[str, Any]:
    """Return what the browser draws of a snapshot, as plain JSON of a few KB at most."""
    shown = snapshot or Snapshot(run_id="")
    memory = shown.memory
    return {
        "run_id": shown.run_id[:MAX_LINE],
        "state": str(shown.state),
        "phase": shown.phase[:MAX_LINE],
        "step": shown.step,
        "skipped": shown.skipped_steps,
        "total_steps": shown.total_steps,
        "loss": number(shown.loss),
        "loss_unit": shown.loss_unit[:64],
        "losses": thin(shown.losses, shown.total_steps),
        "held_out": held_out(shown),
        "best_step": shown.best_step,
        "learning_rate": number(shown.learning_rate),
        "rate": number(shown.steps_per_second),
        "eta": number(shown.eta_seconds),
        "elapsed": number(shown.elapsed_seconds),
        "metrics": _metrics(shown),
        "sureness": sureness(shown.intervals, shown.evaluated)[:MAX_LINE],
        "padding": number(shown.padding),
        "memory": memory and _memory(memory),
    }


def held_out(shown: Snapshot) -> list[tuple[int, float | None]]:
    """Return at most `MAX_POINTS` of the held-out losses as (step, loss), the base's at step 0.

    Nothing where none was measured while the run trained: the metrics say what was before and
    after.
    """
    if not shown.evaluations:
        return []
    rows = shown.evaluations[:: -max(1, -(-len(shown.evaluations) // MAX_POINTS))][::-1]
    points = [(int(row["step"]), number(row["loss"])) for row in rows]
    before = shown.metrics.get("loss_before")
    return points if before is None else [(0, number(before)), *points]


def _metrics(shown: Snapshot) -> list[dict[str, Any]]:
    """Return each metric before and after; of a run at work as it was at the last look, too."""
    latest = shown.evaluations[-1] if shown.evaluations else {}
    found = []
    for metric, before, after in changes(shown.metrics)[:16]:
        told = {"label": metric.title[:64], "before": number(before), "after": number(after)}
        now = latest.get(metric.name) if after is None else None
        found.append(told if now is None else {**told, "now": number(now)})
    return found


def _memory(memory: MemoryReading) -> dict[str, Any]:
    found: dict[str, Any] = {"current": memory.current, "peak": memory.peak}
    found["kind"] = memory.kind[:64]
    if memory.devices:
        names = ("name", "current", "peak")
        each = [(name[:64], *sizes) for name, *sizes in memory.devices[:MAX_DEVICES]]
        found["devices"] = [dict(zip(names, values, strict=True)) for values in each]
    return found


def thin(
    losses: Sequence[tuple[int, float]] | np.ndarray, total_steps: int
) -> list[tuple[int, float | None, float | None]]:
    """Return at most `MAX_POINTS` of the points as (step, loss, smoothed loss).

    The smoothed value is the exponentially weighted mean of all points so far, with the weight
    exp(-Δstep/τ), τ = max(2, total_steps/60) steps, divided by the sum of the weights so that it
    starts without bias. A loss that is not finite is None and does not enter the mean.

    Args:
        losses: (step, loss), the steps ascending.
        total_steps: of the run.
    """
    steps, values = np.array(losses, np.float64).reshape(-1, 2).T
    if not len(steps):
        return []
    span = max(2.0, total_steps / 60)
    every = -(-len(steps) // MAX_POINTS)
    # Counted from the end, so that the newest point is always among them.
    ends = np.arange(len(steps) - 1, -1, -every)[::-1]
    first = np.concatenate([[0], ends[:-1] + 1])  # of the points up to each of them
    past = np.cumsum(np.maximum(0, np.diff(steps, prepend=steps[0]))) / span
    finite = np.isfinite(values)
    weights = np.exp(past - np.repeat(past[ends], ends - first + 1)) * finite
    sums = np.add.reduceat(weights * np.where(finite, values, 0.0), first)
    counts = np.add.reduceat(weights, first)
    mean = weight = 0.0
    points = []
    for i, kept in enumerate(np.exp(-np.diff(past[ends], prepend=0.0))):
        mean, weight = mean * kept + sums[i], weight * kept + counts[i]
        loss = number(float(values[ends[i]]))
        points.append((int(steps[ends[i]]), loss, number(mean / weight) if weight else None))
    return points


def number(value: float | None) -> float | None:
    """Round to 6 digits for the wire; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
