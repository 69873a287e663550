"""A sweep is steered, waited for and visited from any thread, and wherever Ctrl-C comes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lora_lab as ll
from lora_lab.errors import RunError
from lora_lab.sweeps import local, sweep
from lora_lab.sweeps.local import Sweep
from lora_lab.tasks.metrics import Metric
from lora_lab.training import threads
from tests.helpers.interrupted import cut
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

CONFIG = ll.LoraConfig(r=2, target_modules=["q"])


@pytest.fixture
def idle(tmp_path: Path) -> Any:
    """Make sweeps of one short cell, and end those that a failed test leaves."""
    made: list[Sweep] = []

    def make(task: Any = None, **training: Any) -> Sweep:
        short = {"max_steps": 1, "eval_examples": 0, "max_length": 32, "save_steps": 0}
        found = sweep(
            tiny_lm(), task or tiny_task(8, 2), CONFIG, grid={"seed": [0]}, output_dir=tmp_path,
            name=f"sweep{len(made)}", start=False, **{**short, **training},
        )  # fmt: skip
        made.append(found)
        return found

    yield make
    for each in made:
        with contextlib.suppress(RunError):
            each.stop()
            each.wait(60)


def visit(one: Sweep) -> None:
    with one.paused():
        pass


def goes_on(one: Sweep) -> None:
    run = one.snapshot.run
    assert run is not None
    step = run.snapshot.step
    until(lambda: run.snapshot.step > step)


def test_a_start_that_was_interrupted_anywhere_is_started_again(idle: Any) -> None:
    for place in itertools.count(0, 5):
        one = idle()
        came_so_far = cut(one.start, place, local)
        one.start()
        assert one.wait(60)
        assert one.snapshot.state == "done"
        assert len(one.snapshot.ended) == 1
        if not came_so_far:
            return


VERBS: dict[str, Callable[[Sweep], object]] = {
    "paused": visit,
    "wait": lambda one: one.wait(0.01),
    "stop": lambda one: one.stop(),
}


@pytest.mark.parametrize("verb", VERBS)
def test_it_goes_on_after_a_verb_that_was_interrupted_anywhere(idle: Any, verb: str) -> None:
    """Whatever the last traceback holds, as a notebook keeps it."""
    kept: list[BaseException] = []

    def act(one: Sweep) -> None:
        try:
            VERBS[verb](one)
        except KeyboardInterrupt as interrupt:
            kept.append(interrupt)
            raise

    one = None
    for place in itertools.count(0, 2):
        if one is None or verb == "stop":
            one = idle(max_steps=10**6).start()
            until(lambda one=one: one.snapshot.run and one.snapshot.run.snapshot.step)
        came_so_far = cut(lambda one=one: act(one), place, local, contextlib)
        if verb == "stop":
            one.stop()
            assert one.wait(60)
        else:
            goes_on(one)
        if not came_so_far:
            assert kept
            return


def test_waiting_while_its_thread_begins_is_no_error(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, said = idle(), []

    class Slow(threading.Thread):
        def start(self) -> None:
            with pytest.raises(RunError, match="has not started; call start"):
                one.wait(0)
            super().start()
            with pytest.raises(RunError, match="has not started; call start"):
                one.wait(0)
            said.append(self.name)

    monkeypatch.setattr(threads.threading, "Thread", Slow)
    with monkeypatch.context():
        one.start()
    monkeypatch.undo()
    assert said[0] == "lora-lab sweep"
    assert one.wait(60)


def test_interrupting_wait_leaves_it_alive_and_says_so(
    idle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = idle(max_steps=10**6).start()
    until(lambda: one.snapshot.run is not None)

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one._thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"sweep0 goes on in the back.*; sweep\.stop\("):
            one.wait()
    goes_on(one)


def test_waiting_for_it_on_a_thread_that_it_waits_for_is_an_error(idle: Any) -> None:
    """A metric is computed on the thread of a cell's run."""
    said: list[str] = []

    def asks(*_: Any) -> float:
        for wait in (lambda: one.wait(), lambda: visit(one)):
            with pytest.raises(RunError) as refused:
                wait()
            said.append(str(refused.value))
        return 1.0

    metrics = (Metric("asks", asks, label="asks"),)
    task = dataclasses.replace(tiny_task(8, 2), metrics=metrics)
    one = idle(task, eval_examples=1, kept_texts=0)
    one.start()
    assert one.wait(60)
    assert one.snapshot.state == "done"
    assert [line.split(": ")[1].split(" was")[0] for line in said[:2]] == ["wait()", "paused()"]
