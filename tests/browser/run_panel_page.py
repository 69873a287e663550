"""A run panel of a made-up session, and what it shows and sends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lora_lab.budget.reading import MemoryReading
from lora_lab.training.snapshot import RunState, Snapshot
from lora_lab_widgets.run_panel import RunPanel
from lora_lab_widgets.serialize import describe
from tests.browser.esm import EsmPage
from tests.helpers.fake_session import FakeSession, tiny_plan

Make = Callable[..., EsmPage]

TRAINING = Snapshot(
    run_id="run-1",
    state=RunState.RUNNING,
    phase="training",
    step=186,
    total_steps=300,
    loss=1.42,
    losses=tuple((i, 1.3 + 2.6 * math.exp(-i / 26)) for i in range(1, 187)),
    steps_per_second=2.13,
    elapsed_seconds=88.0,
    eta_seconds=37.2,
    metrics={"bleu_before": 12.06, "bleu_after": 38.2},
    intervals={"bleu_before": (9.5, 15.0), "bleu_after": (30.2, 44.6)},
    evaluated=(16, 4672),
    evaluations=tuple({"step": i, "loss": 1.6 + 2.6 * math.exp(-i / 40)} for i in (60, 120, 180)),
    best_step=120,
    padding=0.0412,
    memory=MemoryReading(1 << 30, 5 << 28, "tensor bytes on the CPU"),
)


def panel(snapshot: Snapshot | None = None, **kwargs: Any) -> RunPanel:
    plan = tiny_plan("mini-e2e", "mini-sql")
    session = FakeSession(plan=plan, snapshot=snapshot, **kwargs)
    return RunPanel(session)  # type: ignore[arg-type]


def shown(snapshot: Snapshot | None, **changes: Any) -> dict[str, Any]:
    return {"seq": "", **describe(snapshot), "problem": None, **changes}


def ticks(esm: EsmPage) -> list[dict[str, Any]]:
    return [m for m in esm.sent() if m["type"] == "tick"]
