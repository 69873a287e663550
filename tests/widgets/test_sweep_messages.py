"""What the sweep panel sends: the table's order, progress in words, small and few messages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lora_lab as ll
from lora_lab.sweeps import Cell, CellResult, SweepSnapshot
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets import sweep_panel
from lora_lab_widgets.panel import Tick
from lora_lab_widgets.sweep_panel import SweepPanel
from lora_lab_widgets.sweep_plan import MOST_CELLS
from lora_lab_widgets.sweep_view import minutes, progress, rows
from tests.helpers.fake_session import FakeSession, tiny_plan


class FakeSweep:
    """A sweep of cells that are only told of."""

    def __init__(self, count: int = 4, **snapshot: Any) -> None:
        training = ll.TrainingConfig(max_steps=60)
        self.cells = tuple(
            Cell(f"c{i}", {"r": i, "learning_rate": 1e-6}, (ll.LoraConfig(r=i + 1),), training)
            for i in range(count)
        )
        self.folder = Path("runs/sweep")
        self.snapshot = SweepSnapshot(total=count, **snapshot)


def ended(cell: str, state: Any = "done", loss: float | None = 1.0, **more: Any) -> CellResult:
    metrics = {} if loss is None else {"loss_before": 9.0, "loss_after": loss, "bleu_after": 3.25}
    return CellResult(cell, state, "run", 60, metrics, more.pop("rungs", {}), **more)


def test_cells_stand_by_their_loss_then_what_was_stopped_then_what_failed():
    results = {
        "c0": ended("c0", loss=2.0),
        "c1": ended("c1", "failed", None, problem="no room\nfor it"[:7]),
        "c2": ended("c2", "stopped early", None, rungs={20: 4.5, 60: 4.25}),
        "c3": ended("c3", loss=1.5),
        "c4": ended("c4", loss=None),
    }
    sweep: Any = FakeSweep(7, state="running", ended=results)
    sweep.snapshot = dataclasses.replace(sweep.snapshot, cell=sweep.cells[5])
    found = rows(sweep, sweep.snapshot)
    states = ["done", "done", "done", "stopped early", "training", "waiting", "failed"]
    assert [row["state"] for row in found] == states
    assert [row["cell"] for row in found] == ["c3", "c0", "c4", "c2", "c5", "c6", "c1"]
    assert [row["best"] for row in found] == [True] + [False] * 6
    assert found[3]["note"] == "behind at step 60: training loss 4.250"
    assert found[6]["note"] == "no room"
    assert found[0]["metric"] == "BLEU (cased) 3.25"
    assert found[0]["what"] == "r=3, lr 1e-6"
    told = progress(sweep, sweep.snapshot)["told"]
    assert told == "1 stopped early · 1 failed"


def test_a_failed_sweep_says_why_and_time_left_is_the_mean_of_what_was_trained():
    sweep: Any = FakeSweep(
        4, state="running", seconds=120.0, skipped=1,
        ended={"c0": ended("c0"), "c1": ended("c1")},
    )  # fmt: skip
    assert progress(sweep, sweep.snapshot)["left"] == "about 4 min left"  # 2 cells of 120 s
    sweep.snapshot = dataclasses.replace(sweep.snapshot, state="failed", problem="the disk is full")
    shown = progress(sweep, sweep.snapshot)
    assert (shown["line"], shown["problem"], shown["left"]) == (
        "the sweep failed",
        "the disk is full",
        "",
    )
    assert [minutes(s) for s in (0.2, 40, 480, 9000)] == ["1 s", "40 s", "8 min", "2.5 h"]


def panel() -> SweepPanel:
    return SweepPanel(FakeSession(tiny_plan().anatomy))  # type: ignore[arg-type]


def test_no_message_is_larger_than_64_kb(sent):
    bad = "→" * 3000
    sweep: Any = FakeSweep(1000, state="done")
    results = {c.id: ended(c.id, "failed", None, problem=bad) for c in sweep.cells}
    sweep.cells = tuple(dataclasses.replace(c, changes={"x": bad}) for c in sweep.cells)
    sweep.snapshot = dataclasses.replace(sweep.snapshot, ended=results)
    view = panel()
    del sent[:]
    view.show(sweep)
    sizes = [len(json.dumps(message, ensure_ascii=False).encode()) for _, message in sent]
    assert max(sizes) < 64 * 1024
    assert view.progress["hidden"] == 1000 - MOST_CELLS


def test_steps_bring_one_message_in_two_seconds_and_rest_none(sent, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(sweep_panel.time, "monotonic", lambda: now[0])
    sweep: Any = FakeSweep(4, state="running")
    view = panel()
    view.show(sweep)

    run: Any = SimpleNamespace()
    sweep.snapshot = dataclasses.replace(sweep.snapshot, cell=sweep.cells[0], run=run)
    del sent[:]
    for step in range(80):  # 20 s at the heartbeat's fastest
        run.snapshot = Snapshot("r", step=step, total_steps=100, phase="training")
        view.update(Tick())
        now[0] += 0.25
    assert 10 <= len(sent) <= 13
    del sent[:]
    for _ in range(80):
        view.update(Tick())
        now[0] += 0.25
    assert len(sent) <= 1
