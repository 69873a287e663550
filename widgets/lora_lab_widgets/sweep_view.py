"""A sweep as the browser gets it: plain JSON, and less than 64 KB of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from lora_lab._util.format import plural
from lora_lab.analysis.choices import Choices
from lora_lab.sweeps.cells import Cell
from lora_lab.sweeps.local import Sweep, SweepSnapshot
from lora_lab.sweeps.store import CellResult
from lora_lab.tasks.metrics import metric_of
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.serialize import number
from lora_lab_widgets.sweep_plan import MOST_CELLS

_MOST_WHAT, _MOST_NOTE = 100, 120  # bytes of a cell's text, and of why it failed
_NAMES = {"learning_rate": "lr", "target_modules": "targets", "seed": "seed"}
_LOSS = "loss_after"
_ORDER = ("done", "stopped early", "training", "waiting", "failed")


def in_words(cell: Cell) -> str:
    """Return what a cell has of its own: "r=8, lr 0.001"."""
    parts = []
    for field, value in cell.changes.items():
        if field == "r":
            parts.append(f"r={value}")
        elif field == "method":
            parts.append(str(value))
        else:
            name = _NAMES.get(field, field)
            parts.append(f"{name} {_text(value)}")
    return _clipped(", ".join(parts) or "as it is", _MOST_WHAT)


def rows(sweep: Sweep, seen: SweepSnapshot) -> list[dict[str, Any]]:
    """Return the cells as they stand: the best held-out loss first, what failed last."""
    found = [_row(cell, seen) for cell in sweep.cells]
    found.sort(key=lambda row: (_ORDER.index(row["state"]), *_standing(row)))
    best = next((row for row in found if row["state"] == "done" and row["loss"] is not None), None)
    if best is not None:
        best["best"] = True
    return found[:MOST_CELLS]


def progress(sweep: Sweep, seen: SweepSnapshot) -> dict[str, Any]:
    """Return how far a sweep is: its state, its cell, that cell's step, what is left."""
    run = seen.run.snapshot if seen.run else None
    trained = len(seen.ended) - seen.skipped
    return {
        "state": seen.state,
        "line": _line(sweep, seen, run),
        "ended": len(seen.ended),
        "total": seen.total,
        "share": _share(seen, run),
        "left": _left(seen, run, trained) if seen.going else "",
        "told": _told(seen),
        "folder": str(sweep.folder),
        "hidden": max(0, seen.total - MOST_CELLS),
        "problem": seen.problem[:600],
    }


def minutes(seconds: float) -> str:
    """Return a length of time as people say it: "40 s", "8 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def shown_choices(found: Choices) -> dict[str, Any]:
    """Return what a comparison came to, as the browser shows it."""
    table = found.to_table()
    return {
        "header": list(table.header),
        "rows": [[_clipped(cell, _MOST_WHAT) for cell in row] for row in table.rows],
        "words": found.summary(),
        "notes": "; ".join(filter(None, (found.halves, found.note))),
    }


def _line(sweep: Sweep, seen: SweepSnapshot, run: Snapshot | None) -> str:
    if seen.state == "failed":
        return "the sweep failed"
    if not seen.going or seen.cell is None:
        return f"{len(seen.ended)} of {plural(seen.total, 'cell')}"
    at = next(i for i, cell in enumerate(sweep.cells, 1) if cell.id == seen.cell.id)
    parts = [f"cell {at} of {seen.total}", in_words(seen.cell)]
    if run is not None:
        moving = run.step and run.phase in ("", "training")
        parts.append(
            f"step {run.step} of {run.total_steps}" if moving else run.phase or str(run.state)
        )
    return " · ".join(parts)


def _told(seen: SweepSnapshot) -> str:
    """Return what is worth a word beside the numbers."""
    states = [result.state for result in seen.ended.values()]
    facts = []
    if seen.skipped:
        facts.append(f"{seen.skipped} skipped: finished in an earlier call")
    if early := states.count("stopped early"):
        facts.append(f"{early} stopped early")
    if failed := states.count("failed"):
        facts.append(f"{failed} failed")
    return " · ".join(facts)


def _share(seen: SweepSnapshot, run: Snapshot | None) -> float:
    within = run.step / run.total_steps if run and run.total_steps else 0.0
    return min(1.0, (len(seen.ended) + within) / seen.total) if seen.total else 0.0


def _left(seen: SweepSnapshot, run: Snapshot | None, trained: int) -> str:
    """Return what the cells to come will take, by those that have been trained; "" before."""
    if not trained or not seen.seconds:
        return ""
    within = run.step / run.total_steps if run and run.total_steps else 0.0
    cells = seen.total - len(seen.ended) - within
    return f"about {minutes(cells * seen.seconds / trained)} left"


def _row(cell: Cell, seen: SweepSnapshot) -> dict[str, Any]:
    ended = seen.ended.get(cell.id)
    row: dict[str, Any] = {
        "cell": cell.id,
        "what": in_words(cell),
        "state": "waiting",
        "loss": None,
        "metric": "",
        "step": 0,
        "steps": cell.training.max_steps,
        "note": "",
        "best": False,
        "run": "",
    }
    if ended is None:
        if seen.going and seen.cell is not None and seen.cell.id == cell.id:
            row["state"] = "training"
        elif seen.going and cell.id in seen.elsewhere:
            row |= {"state": "training", "note": "in another process"}
        return row
    row |= {"state": ended.state, "step": ended.step, "loss": number(ended.metrics.get(_LOSS))}
    row["metric"] = _metric(ended.metrics)
    row["note"] = _note(ended)
    if ended.state != "failed":
        row["run"] = ended.run  # whose adapter can be kept
    return row


def _note(ended: CellResult) -> str:
    if ended.state == "failed":
        return _clipped(ended.problem, _MOST_NOTE)
    if ended.state == "stopped early" and ended.rungs:
        rung = max(ended.rungs)
        return f"behind at step {rung}: training loss {ended.rungs[rung]:.3f}"
    return ""


def _metric(metrics: Mapping[str, float]) -> str:
    shown = [
        f"{metric_of(name).title[:32]} {_digits(value)}"
        for name, value in metrics.items()
        if name.endswith("_after") and name != _LOSS
    ]
    return ", ".join(shown[:2])


def _standing(row: Mapping[str, Any]) -> tuple[float, float]:
    loss = row["loss"]
    return (loss if loss is not None else math.inf, -row["step"])


def _digits(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def _clipped(text: str, most: int) -> str:
    return (
        text if len(text.encode()) <= most else text.encode()[:most].decode(errors="ignore") + "…"
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return re.sub(r"e([+-])0+", r"e\1", f"{value:.4g}")
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value))
    return str(value)
