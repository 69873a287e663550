"""Ranks that move while a run trains, on the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from lora_lab.configs import AdaLoraConfig
from lora_lab.training.snapshot import RunState, Snapshot
from lora_lab_widgets.panel import Tick
from lora_lab_widgets.rank_grid import RankGrid


@dataclass
class FakeRun:
    id: str
    configs: tuple[Any, ...] = (AdaLoraConfig(init_r=6, target_r=4),)


def grid() -> RankGrid:
    cells = [
        {"row": 0, "role": role, "site": f"s.{role}", "shape": [8, 8], "max_rank": 8}
        for role in ("q", "k", "v")
    ]
    return RankGrid(rows=["0"], roles=["q", "k", "v"], cells=cells, ranks={"s.q": 4, "s.v": 4})


def at(step: int, ranks: dict[str, int] | None, state: RunState = RunState.RUNNING) -> Snapshot:
    return Snapshot("run-1", state, step=step, ranks=ranks)


def test_live_ranks_are_sent_where_they_changed_and_not_too_often(
    sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("lora_lab_widgets.live_ranks.time.monotonic", lambda: clock[0])
    shown, run = grid(), FakeRun("run-1")
    sent.clear()
    shown.update(Tick(at(1, None), run))
    assert shown.live == {}
    shown.update(Tick(at(2, {"s.q": 6, "s.v": 6}), run))
    assert shown.live == {"ranks": [6, 0, 6], "text": "live ranks, step 2, budget 12 of 12"}
    for step in range(3, 20):
        clock[0] += 0.05
        shown.update(Tick(at(step, {"s.q": 6, "s.v": 12 - step // 2}), run))
    assert len(sent) == 1
    clock[0] += 1
    shown.update(Tick(at(30, {"s.q": 5, "s.v": 4}), run))
    assert shown.live["text"] == "live ranks, step 30, budget 9 of 12"
    shown.update(Tick(at(40, {"s.q": 5, "s.v": 3}, RunState.DONE), run))
    assert shown.live == {"ranks": [5, 0, 3], "text": "final ranks, step 40, budget 8 of 12"}
    assert shown.ranks == {"s.q": 4, "s.v": 4}, "the painted plan is as it was"


def test_another_plan_ends_the_show_of_final_ranks() -> None:
    shown, run = grid(), FakeRun("run-1")
    shown.update(Tick(at(4, {"s.q": 5, "s.v": 3}, RunState.DONE), run))
    shown.show_painted()
    assert shown.live == {}
    shown.update(Tick(at(4, {"s.q": 5, "s.v": 3}, RunState.DONE), run))
    assert shown.live == {}
    shown.update(
        Tick(Snapshot("run-2", RunState.RUNNING, step=1, ranks={"s.q": 6}), FakeRun("run-2"))
    )
    assert shown.live["ranks"] == [6, 0, 0]
