"""The heartbeat without a browser: messages in, messages out, threads, and bad news."""

from __future__ import annotations

import dataclasses
import random
import threading
from typing import Any

import numpy as np
import pytest

from lora_lab.budget.reading import MemoryReading
from lora_lab.errors import ConfigError, RunError
from lora_lab.training.snapshot import Failure, RunState, Snapshot
from lora_lab_widgets.serialize import MAX_POINTS, thin
from tests.helpers.run_desk import Desk, Recorder, tick

LOSSES = tuple((i, 4 / i + 0.01 * (i % 7)) for i in range(1, 501))
MEMORY = MemoryReading(10, 20, "tensor bytes on the CPU")
RUNNING = Snapshot(
    run_id="run-1",
    state=RunState.RUNNING,
    phase="training",
    step=500,
    total_steps=1000,
    loss=1.25,
    losses=LOSSES,
    learning_rate=2e-3,
    steps_per_second=2.1,
    elapsed_seconds=238.0,
    eta_seconds=237.5,
    metrics={"bleu_before": 12.1},
    intervals={"bleu_before": (9.5, 15.0)},
    evaluated=(16, 4672),
    padding=0.25,
    memory=MEMORY,
)


def test_each_tick_is_answered_by_one_message_even_when_nothing_changed() -> None:
    panel = Desk(RUNNING).panel()
    wire = Recorder(panel)
    for i in range(5):
        tick(panel, f"a-{i}")
    assert [m["method"] for m in wire.messages] == ["update"] * 5
    assert [list(m["state"]) for m in wire.messages] == [["snapshot"]] * 5
    assert [m["state"]["snapshot"]["seq"] for m in wire.messages] == [f"a-{i}" for i in range(5)]


def test_messages_stay_small_and_plain_whatever_the_run_brings() -> None:
    desk = Desk(
        Snapshot(
            run_id="run-1",
            state=RunState.FAILED,
            total_steps=10**6,
            loss=float("nan"),
            losses=tuple((i, float("inf") if i % 9 else 1 / i) for i in range(1, 501)),
            metrics={f"metric {i}" * 20: float(i) for i in range(500)},
            memory=MemoryReading(
                *(10**13, 10**13, "k" * 10_000), devices=(("cuda:0" * 99, 10**13, 10**13),) * 5000
            ),
            failure=Failure("m" * 10_000, "r" * 10_000, "d" * 500_000 + "the last line"),
        )
    )
    panel = desk.panel()
    wire = Recorder(panel)
    tick(panel)
    assert wire.sizes()[0] < 64_000
    assert panel.snapshot["loss"] is None
    assert panel.snapshot["problem"]["details"].endswith("the last line")


def test_the_snapshot_holds_what_the_run_says() -> None:
    shown = Desk(RUNNING).panel().snapshot
    assert shown["seq"] == ""  # a new view, or a reloaded page, draws it at once
    losses = shown.pop("losses")
    assert shown == {
        "seq": "",
        "run_id": "run-1",
        "state": "running",
        "phase": "training",
        "step": 500,
        "total_steps": 1000,
        "loss": 1.25,
        "loss_unit": "nats per token",
        "held_out": [],
        "best_step": None,
        "learning_rate": 0.002,
        "skipped": 0,
        "rate": 2.1,
        "eta": 237.5,
        "elapsed": 238.0,
        "metrics": [{"label": "BLEU (cased)", "before": 12.1, "after": None}],
        "sureness": "scored on 16 of 4,672 held-out examples; "
        "95 % intervals: BLEU (cased) 9.50 to 15.0",
        "padding": 0.25,
        "memory": {"current": 10, "peak": 20, "kind": "tensor bytes on the CPU"},
        "problem": None,
    }
    assert losses[-1][0] == 500
    assert Desk(None).panel().snapshot["state"] == "idle"


def test_thinned_losses_are_measured_points_with_their_weighted_mean() -> None:
    points = thin(LOSSES, 1000)
    assert len(points) <= MAX_POINTS
    assert points[-1][:2] == (500, pytest.approx(LOSSES[-1][1], rel=1e-5))
    by_step = dict(LOSSES)
    steps = np.array([s for s, _ in LOSSES], dtype=np.float64)
    losses = np.array([v for _, v in LOSSES], dtype=np.float64)
    for step, loss, mean in points[::17]:
        weights = np.exp(-(step - steps) / (1000 / 60)) * (steps <= step)
        assert loss == pytest.approx(by_step[step], rel=1e-5)
        assert mean == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-5)


def test_views_get_the_one_snapshot_with_theme_and_width() -> None:
    desk = Desk(RUNNING)
    panel = desk.panel()
    calls: list[Any] = []

    def view(*args: Any) -> None:
        calls.append(args)
        desk.snapshot = None  # the run moves on while the views are at work

    panel.beat = view
    tick(panel, theme="dark", width=431)
    assert calls == [(RUNNING, "dark", 431)]
    assert panel.snapshot["run_id"] == "run-1"


def test_a_broken_heartbeat_is_reported_and_stops_nothing() -> None:
    panel = Desk(RUNNING).panel()
    failing = True

    def broken(*_: Any) -> None:
        if failing:
            raise ValueError("no such colour")

    panel.beat = broken
    tick(panel, "a-1")
    tick(panel, "a-2")
    problem = panel.snapshot["problem"]
    assert problem["message"] == "ValueError: no such colour"
    assert "the panels" in problem["remedy"]
    assert "in broken" in problem["details"]
    assert panel.snapshot["seq"] == "a-2"
    failing = False
    tick(panel, "a-3")
    assert panel.snapshot["problem"] is None


def test_a_run_that_cannot_be_read_keeps_the_last_picture() -> None:
    failing = False

    class Unreadable(Desk):
        @property
        def run(self) -> Any:
            if failing:
                raise OSError("disk gone")
            return super().run

    panel = Unreadable(RUNNING).panel()
    failing = True
    tick(panel, "a-1")
    assert (panel.snapshot["seq"], panel.snapshot["step"]) == ("a-1", 500)
    assert panel.snapshot["problem"]["message"] == "OSError: disk gone"


def test_start_carries_the_settings_as_the_configs_want_them() -> None:
    desk = Desk()
    desk.plan.merge({"lora_alpha": 16})
    panel = desk.panel()
    wire = Recorder(panel)
    panel._handle(
        {"type": "command", "name": "start", "seq": "a-1", "settings": {"max_steps": 40.0}}
    )
    ((name, settings),) = desk.commands
    assert (name, settings["max_steps"], settings["lora_alpha"]) == ("start", 40, 16)
    assert isinstance(settings["max_steps"], int)
    assert settings["task"] == "mini-e2e"
    assert panel.settings["max_steps"] == 40
    assert wire.messages[-1]["state"]["snapshot"]["seq"] == "a-1"


@pytest.mark.parametrize(
    ("changes", "message", "field"),
    [
        ({"max_steps": "many"}, "steps is 'many'; it must be a number", "max_steps"),
        ({"seed": 1.5}, "seed is 1.5; it must be a whole number", "seed"),
        ({"lora_dropout": ""}, "dropout is empty; it must be a number", "lora_dropout"),
        ({"lr": 1}, "no setting 'lr'; the panel has task, steps", ""),
    ],
)
def test_bad_settings_are_named_and_do_not_start(
    changes: dict[str, Any], message: str, field: str
) -> None:
    desk = Desk()
    panel = desk.panel()
    panel._handle({"type": "command", "name": "start", "seq": "a-1", "settings": changes})
    assert desk.commands == []
    assert panel.snapshot["problem"]["message"].startswith(message)
    assert panel.snapshot["problem"]["field"] == field
    assert panel.snapshot["problem"]["details"] == ""


def test_what_a_command_refuses_is_shown_until_it_is_mended() -> None:
    desk = Desk()
    panel = desk.panel()
    desk.error = ConfigError("learning_rate is -1; it must be a positive number")
    panel._handle({"type": "command", "name": "start", "seq": "a-1", "settings": {}})
    tick(panel, "a-2")
    assert panel.snapshot["problem"]["field"] == "learning_rate"
    panel._handle({"type": "settings", "settings": {"learning_rate": 1e-3}, "seq": "a-3"})
    assert panel.snapshot["problem"] is None

    desk.error = RunError("the run has no step to pause at")
    panel._handle({"type": "command", "name": "pause", "seq": "a-4", "settings": {}})
    assert panel.snapshot["problem"]["message"] == "the run has no step to pause at"
    desk.snapshot = RUNNING  # started from a cell meanwhile
    tick(panel, "a-5")
    assert panel.snapshot["problem"] is None


def test_the_runs_problem_is_shown() -> None:
    failed = Snapshot("run-1", RunState.FAILED, failure=Failure("out of memory", "batch 4", "tb"))
    problem = Desk(failed).panel().snapshot["problem"]
    assert problem == {
        "message": "out of memory",
        "remedy": "batch 4",
        "details": "tb",
        "field": "",
        "proposal": "",
    }


def test_what_would_have_fitted_is_offered_until_it_is_taken() -> None:
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    problem = Failure("out of memory", "try less", proposal=fields)
    desk = Desk(Snapshot("run-1", RunState.FAILED, failure=problem))
    panel = desk.panel()
    offered = "per_device_train_batch_size=4 with gradient_accumulation_steps=2"
    assert panel.snapshot["problem"]["proposal"] == offered
    panel._handle({"type": "command", "name": "take", "seq": "a-1", "settings": {}})
    assert desk.commands[-1][0] == "take"
    assert panel.snapshot["problem"]["proposal"] == ""
    assert panel.snapshot["problem"]["remedy"].endswith("press Start")
    desk.snapshot = Snapshot("run-2", RunState.FAILED, failure=problem)
    tick(panel, "a-2")
    assert panel.snapshot["problem"]["proposal"] == offered, "of another run"


def test_unknown_messages_commands_and_settings_are_refused_aloud() -> None:
    panel = Desk().panel()
    panel._handle({"type": "command", "name": "explode", "seq": "1"})
    assert "no command 'explode'; use one of start" in panel.snapshot["problem"]["message"]
    panel._handle({"type": "tock", "seq": "2"})
    assert "unknown message 'tock'" in panel.snapshot["problem"]["message"]
    with pytest.raises(ConfigError, match="no setting 'epochs'; the panel has task"):
        Desk().plan.merge({"epochs": 3})
    with pytest.raises(TypeError, match="RunPanel has no setting 'task'; did you mean 'tasks'"):
        Desk().panel(task="x")


def test_a_command_gets_through_while_a_view_is_slow() -> None:
    desk = Desk(RUNNING)
    panel = desk.panel()
    entered, leave = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        entered.set()
        assert leave.wait(10)

    panel.beat = slow
    ticking = threading.Thread(target=tick, args=(panel, "a-1"))
    ticking.start()
    assert entered.wait(10)
    try:
        panel._handle({"type": "command", "name": "stop", "seq": "a-2", "settings": {}})
        assert desk.commands[-1][0] == "stop"
        assert panel.snapshot["seq"] == "a-2"
        tick(panel, "b-1")  # of another page: answered, without a second round of the views
        assert panel.snapshot["seq"] == "b-1"
    finally:
        leave.set()
        ticking.join(10)
    assert panel.snapshot["seq"] == "a-1"


def test_three_threads_hammer_the_handler() -> None:
    desk = Desk(RUNNING)
    panel = desk.panel()
    wire = Recorder(panel)
    inside = 0
    most = 0

    def view(*_: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    panel.beat = view
    errors: list[Exception] = []

    def hammer(page: int) -> None:
        rng = random.Random(page)
        try:
            for i in range(200):
                kind = rng.choice(["tick", "command", "settings"])
                panel._handle(
                    {
                        "type": kind,
                        "seq": f"{page}-{i}",
                        "name": rng.choice(["start", "pause", "resume", "stop"]),
                        "settings": {"seed": rng.randrange(100)},
                        "theme": "light",
                        "width": 500,
                    }
                )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=hammer, args=(page,)) for page in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert most == 1
    answers = [m["state"]["snapshot"]["seq"] for m in wire.messages if "snapshot" in m["state"]]
    assert sorted(answers) == sorted(f"{page}-{i}" for page in range(3) for i in range(200))
    assert panel.snapshot["problem"] is None
    assert wire.messages[-1]["state"].keys() <= {"snapshot", "settings"}
    told = [m["state"]["settings"] for m in wire.messages if "settings" in m["state"]]
    assert told[-1] == panel.settings  # the browser's last word is Python's


def test_what_a_cell_changes_goes_with_the_next_answer() -> None:
    # Else ipykernel would hand the next ticks, and Stop, to the busy cell's thread.
    desk = Desk(RUNNING)
    panel = desk.panel()
    wire = Recorder(panel)
    panel.settings = {**panel.settings, "seed": 5}
    desk.plan.add_task(dataclasses.replace(desk.plan.task, name="mine"))
    assert wire.messages == []
    tick(panel, "a-1")
    (message,) = wire.messages
    assert set(message["state"]) == {"snapshot", "settings", "tasks"}
    assert message["state"]["settings"]["seed"] == 5
    panel._handle({"type": "settings", "settings": {"seed": 6}, "seq": "a-2"})
    assert set(wire.messages[1]["state"]) == {"snapshot", "settings"}
    tick(panel, "a-3")
    assert set(wire.messages[2]["state"]) == {"snapshot"}
    panel.send_state()  # a reloaded page asks for everything
    assert wire.messages[3]["state"]["settings"]["seed"] == 6


def test_repr_is_short() -> None:
    assert repr(Desk(RUNNING).panel()) == "<RunPanel run-1 running step 500/1000>"
