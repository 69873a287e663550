"""A run as the browser gets it: plain JSON, a few KB at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lora_lab.tasks.metrics import changes
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.error_json import MAX_LINE

MAX_POINTS = 200  # of a loss curve, a message


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
        "learning_rate": number(shown.learning_rate),
        "rate": number(shown.steps_per_second),
        "eta": number(shown.eta_seconds),
        "elapsed": number(shown.elapsed_seconds),
        "metrics": [
            {"label": metric.title[:64], "before": number(before), "after": number(after)}
            for metric, before, after in changes(shown.metrics)[:16]
        ],
        "memory": memory
        and {"current": memory.current, "peak": memory.peak, "kind": memory.kind[:64]},
    }


def thin(
    losses: Sequence[tuple[int, float]], total_steps: int
) -> list[tuple[int, float | None, float | None]]:
    """Return at most `MAX_POINTS` of the points as (step, loss, smoothed loss).

    The smoothed value is the exponentially weighted mean of all points so far, with the weight
    exp(-Δstep/τ), τ = max(2, total_steps/60) steps, divided by the sum of the weights so that it
    starts without bias. A loss that is not finite is None and does not enter the mean.
    """
    span = max(2.0, total_steps / 60)
    mean = weight = 0.0
    last = losses[0][0] if losses else 0
    points: list[tuple[int, float | None, float | None]] = []
    for step, loss in losses:
        decay = math.exp(-max(0, step - last) / span)
        last = step
        mean, weight = mean * decay, weight * decay
        if math.isfinite(loss):
            mean, weight = mean + loss, weight + 1
        points.append((step, number(loss), number(mean / weight) if weight else None))
    every = -(-len(points) // MAX_POINTS) or 1
    # Counted from the end, so that the newest point is always among them.
    return points[::-1][::every][::-1]


def number(value: float | None) -> float | None:
    """Round to 6 digits for the wire; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
