"""The panel that shows the data before the first step: when it looks, and what it sends."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import Example, GenerationTask
from lora_lab_widgets import Workbench, data_look
from lora_lab_widgets.data_look import DataLook
from lora_lab_widgets.panel import Tick
from tests.helpers.fake_views import until
from tests.helpers.tiny_run import tiny_lm, tiny_task

IDLE, BUSY = Tick(), Tick(busy=True)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setattr(data_look, "SETTLED", 0.0)
    return Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path, max_length=64)


def settled(panel: DataLook, tick: Tick = IDLE) -> DataLook:
    def quiet() -> bool:
        panel.update(tick)
        return not panel.busy and not panel._job.busy

    until(quiet)
    return panel


def test_it_shows_what_the_task_says_of_itself(bench: Workbench) -> None:
    panel = settled(bench.data_look)
    look = bench.task.look(bench.lm, max_length=64)
    assert panel.look["lines"] == look.summary()
    assert panel.look["findings"] == [[each.severity, str(each)] for each in look.findings]
    assert [bar["examples"] for bar in panel.look["bars"]] == [64]
    assert panel.look["first"] == [[token.text, token.learned] for token in look.first]
    assert panel.problem is None
    assert repr(panel) == "<DataLook letters: 2 findings>"
    assert "letters: 64 training" in panel.fallback_html()


def test_it_looks_once_for_each_task_and_length(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    look = GenerationTask.look

    def counted(self: Any, lm: Any, *, max_length: int) -> Any:
        looked.append(max_length)
        return look(self, lm, max_length=max_length)

    monkeypatch.setattr(GenerationTask, "look", counted)
    for length in (64, 16, 64, "1", "", 16):
        bench.plan.merge({"max_length": length})
        settled(bench.data_look)
    assert looked == [64, 16]
    assert "over" in str(bench.data_look.look["bars"])
    assert bench.data_look.look["bars"][0]["over"] is True
    bench.plan.add_task(tiny_task(training=32))  # of the same name
    settled(bench.data_look)
    assert looked == [64, 16, 16]
    assert "32 training" in bench.data_look.look["lines"][0]


def test_it_does_not_look_while_something_trains(bench: Workbench) -> None:
    panel = settled(bench.data_look, BUSY)
    assert panel.look == {}
    assert settled(panel).look != {}


def test_it_looks_on_a_thread_and_says_so(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, threads = threading.Event(), []

    def slow(self: Any, lm: Any, *, max_length: int) -> Any:
        threads.append(threading.current_thread())
        assert gate.wait(10)
        raise TaskError("no row can be read; mend it")

    monkeypatch.setattr(GenerationTask, "look", slow)
    bench.data_look.update(IDLE)
    assert bench.data_look.busy == "looking at the data…"
    gate.set()
    panel = settled(bench.data_look)
    assert threads != [threading.main_thread()]
    assert panel.problem is not None
    assert panel.problem["message"] == "no row can be read; mend it"
    assert panel.look == {}


def test_nothing_is_sent_when_nothing_is_new(bench: Workbench) -> None:
    panel = settled(bench.data_look)
    sent: list[Any] = []
    panel.observe(lambda change: sent.append(change["name"]))
    for _ in range(3):
        panel.update(IDLE)
    assert sent == []


def test_long_first_examples_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_look, "SETTLED", 0.0)
    rows = [Example("p" * 500, "c", ("c",))] * 2
    task = GenerationTask("long", True, rows, rows[:1])
    panel = settled(Workbench(tiny_lm(), task=task, output_dir=tmp_path).data_look)
    assert len(panel.look["first"]) == 200
    assert panel.look["more"] is True


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_steps": 2, "per_device_train_batch_size": 4}, "8 of 64 rows will be seen: 12.5 %"),
        (
            {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            "24 of 64 rows will be seen: 37.5 %",
        ),
        ({"max_steps": 16, "per_device_train_batch_size": 4}, "all 64 rows will be seen, once"),
        (
            {"max_steps": 40, "per_device_train_batch_size": 4},
            "all 64 rows will be seen, 2.5 times each",
        ),
        (
            # Nine steps of seven and one of the one that is left, as HF Trainer's epoch ends.
            {"num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 7},
            "all 64 rows will be seen, once",
        ),
        (
            {"num_train_epochs": 0.25, "max_steps": -1, "per_device_train_batch_size": 8},
            "16 of 64 rows will be seen: 25.0 %",
        ),
    ],
)
def test_how_many_rows_a_run_sees_is_said_before_its_first_step(
    settings: dict[str, Any], line: str, tmp_path: Path
) -> None:
    bench = Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path, **settings)
    assert len(bench.task.train) == 64
    bench.data_look.update(BUSY)
    assert bench.data_look.seen == line


def test_rows_follow_the_settings_and_steps_that_are_no_number_say_nothing(
    bench: Workbench,
) -> None:
    bench.plan.merge({"max_steps": 3, "per_device_train_batch_size": 2})
    bench.data_look.update(BUSY)
    assert bench.data_look.seen == "6 of 64 rows will be seen: 9.38 %"
    bench.plan.merge({"max_steps": ""})
    bench.data_look.update(BUSY)
    assert bench.data_look.seen == ""
