"""The state machine, driven from several threads, with a worker that does nothing."""

from __future__ import annotations

import random
import threading
import time

import pytest

from lora_lab.errors import RunError
from lora_lab.training.control import Control
from tests.helpers.state_walks import (
    DONE,
    FAILED,
    IDLE,
    PAUSED,
    PAUSING,
    QUEUED,
    RUNNING,
    STOPPING,
    Walk,
    until,
)


def test_a_run_goes_from_idle_over_running_to_done():
    walk = Walk(steps=5).start()
    assert walk.control.wait(10)
    assert walk.states == [IDLE, RUNNING, DONE]
    assert walk.step == 5


def test_pause_takes_effect_at_a_boundary_and_resume_goes_on():
    walk = Walk(seconds=0.001).start()
    walk.control.pause()
    until(lambda: walk.control.state is PAUSED)
    step = walk.step
    time.sleep(0.05)
    assert walk.step == step
    walk.control.resume()
    until(lambda: walk.step > step + 3)
    walk.control.stop()
    assert walk.control.wait(10)
    assert walk.states == [IDLE, RUNNING, PAUSING, PAUSED, RUNNING, STOPPING, DONE]


def test_all_is_idempotent():
    walk = Walk(seconds=0.001).start()
    walk.control.start(walk.work)
    for verb in ("pause", "pause"):
        getattr(walk.control, verb)()
    until(lambda: walk.control.state is PAUSED)
    walk.control.pause()
    assert walk.control.state is PAUSED
    for verb in ("resume", "resume", "stop", "stop"):
        getattr(walk.control, verb)()
    assert walk.control.wait(10)
    assert walk.control.wait(10)
    walk.control.stop()
    assert walk.control.state is DONE


def test_stop_ends_a_paused_run():
    walk = Walk().start()
    walk.control.pause()
    until(lambda: walk.control.state is PAUSED)
    walk.control.stop()
    assert walk.control.wait(10)
    walk.assert_legal()
    assert walk.states[-2:] == [STOPPING, DONE]


def test_a_worker_that_raises_has_failed_and_nothing_is_printed(capfd):
    control = Control("broken")
    control.start(lambda: 1 / 0)
    assert control.wait(10)
    assert control.state is FAILED
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("pause", "cannot pause run walk: it has not started; call start() first"),
        ("resume", "cannot resume run walk: it has not started; call start() first"),
        ("stop", "cannot stop run walk: it has not started; call start() first"),
        ("wait", "cannot wait for run walk: it has not started; call start() first"),
    ],
)
def test_an_idle_run_refuses(verb, message):
    with pytest.raises(RunError) as caught:
        getattr(Walk().control, verb)()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("pause", "cannot pause run walk: it is done; call train() for a new run"),
        ("resume", "cannot resume run walk: it is done; call train() for a new run"),
    ],
)
def test_a_finished_run_refuses(verb, message):
    walk = Walk(steps=1).start()
    walk.control.wait(10)
    with pytest.raises(RunError) as caught:
        getattr(walk.control, verb)()
    assert str(caught.value) == message
    with pytest.raises(RunError, match="it is done; a run trains once: call train\\(\\) again"):
        walk.start()


def test_a_stopping_run_refuses_pause_and_resume():
    gate = threading.Event()
    control = Control("slow")
    control.start(lambda: gate.wait(10) and None)
    control.stop()
    for verb in (control.pause, control.resume):
        with pytest.raises(RunError, match="it is stopping; wait\\(\\) until it is done"):
            verb()
    gate.set()
    assert control.wait(10)


def test_start_of_a_paused_run_points_to_resume():
    walk = Walk().start()
    walk.control.pause()
    with pytest.raises(RunError, match="call resume\\(\\) to go on"):
        walk.start()
    walk.control.stop()
    walk.control.wait(10)


def test_a_preparation_that_raises_leaves_the_run_idle():
    walk = Walk(steps=1)
    with pytest.raises(ZeroDivisionError):
        walk.control.start(walk.work, lambda: 1 / 0)
    assert walk.control.state is IDLE
    walk.start()
    assert walk.control.wait(10)


def test_waiting_on_its_own_thread_is_an_error():
    control = Control("self")
    caught = []

    def work() -> None:
        for call in (control.wait, lambda: control.visit(None).__enter__()):
            try:
                call()
            except RunError as error:
                caught.append(str(error))

    control.start(work)
    control.wait(10)
    assert caught == [
        "run self: wait() was called on the run's own thread and would never return",
        "run self: paused() was called on the run's own thread and would never return",
    ]


def test_interrupting_wait_leaves_the_run_alive_and_says_so(monkeypatch):
    walk = Walk(seconds=0.001).start()
    thread = walk.control._thread

    def interrupted(timeout: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"walk goes on in the background; run.stop\(\)"):
        walk.control.wait()
    monkeypatch.undo()
    step = walk.step
    until(lambda: walk.step > step)
    walk.control.stop()
    assert walk.control.wait(10)


def test_wait_with_a_timeout_returns_in_time():
    walk = Walk(seconds=0.001).start()
    start = time.monotonic()
    assert walk.control.wait(0.15) is False
    assert 0.1 < time.monotonic() - start < 2
    walk.control.stop()
    assert walk.control.wait(10) is True


def test_a_checkpoint_is_written_at_the_next_boundary_or_after_the_pause():
    walk = Walk(seconds=0.001).start()
    walk.control.request_checkpoint()
    until(lambda: walk.taken)
    walk.control.pause()
    until(lambda: walk.control.state is PAUSED)
    step = walk.step
    for _ in range(2):
        walk.control.request_checkpoint()
    taken = len(walk.taken)
    walk.control.resume()
    until(lambda: len(walk.taken) > taken)
    assert walk.taken[taken] == step
    walk.control.stop()
    assert walk.control.wait(10)
    assert len(walk.taken) == taken + 1, "asked for twice before a boundary is once"


def test_a_queued_run_waits_is_begun_and_can_be_taken_out():
    walk = Walk(steps=3)
    walk.control.queue()
    walk.control.queue()
    walk.start()
    assert walk.control.state is QUEUED
    assert walk.control.wait(0.15) is False
    for verb in (walk.control.pause, walk.control.resume, walk.control.request_checkpoint):
        with pytest.raises(RunError, match=r"it is queued; it starts by itself when its turn"):
            verb()
    with walk.control.visit(None):
        pass
    assert walk.control.begin(walk.work) is True
    assert walk.control.begin(walk.work) is False
    assert walk.control.wait(10)
    assert walk.states == [IDLE, QUEUED, RUNNING, DONE]
    other = Walk()
    other.control.queue()
    other.control.stop()
    assert other.control.begin(other.work) is False
    assert other.control.wait(1)
    assert other.states == [IDLE, QUEUED, DONE]


def test_interrupting_the_wait_of_a_queued_run_leaves_it_in_line(monkeypatch):
    walk = Walk()
    walk.control.queue()

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(walk.control, "_wait_once", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"walk stays queued; run.stop\(\) ends it"):
        walk.control.wait()
    assert walk.control.state is QUEUED


def _script(random_: random.Random) -> list[tuple[str, float]]:
    verbs = ("start", "pause", "resume", "visit", "checkpoint")
    return [
        (
            random_.choice([*verbs, "stop" if i > 6 else "resume"]),
            random_.choice([0, 0, 0, 0.0005]),
        )
        for i in range(12)
    ]


def _act(walk: Walk, script: list[tuple[str, float]]) -> None:
    for verb, rest in script:
        time.sleep(rest)
        try:
            if verb == "start":
                walk.start()
            elif verb == "checkpoint":
                step = walk.step
                walk.control.request_checkpoint()
                walk.asked.append(step)
            elif verb == "visit":
                with walk.control.visit(None):
                    step = walk.step
                    time.sleep(rest)
                    if walk.control.state is not IDLE:
                        assert walk.step == step
            else:
                getattr(walk.control, verb)()
        except RunError:
            pass


@pytest.mark.parametrize("seed", range(200))
def test_any_interleaving_of_three_threads_ends_in_legal_states(seed):
    walk = Walk(steps=400)
    random_ = random.Random(seed)
    scripts = [_script(random_) for _ in range(3)]
    failures: list[BaseException] = []

    def guarded(script: list[tuple[str, float]]) -> None:
        try:
            _act(walk, script)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(script,)) for script in scripts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert failures == []
    if walk.control.state is not IDLE:
        if not walk.control.state.final:
            walk.control.stop()
        assert walk.control.wait(20), "deadlock"
        assert walk.control.state is DONE
    walk.assert_legal()
    if walk.asked and walk.step < 400:
        # The worker looks after every step, and once more at its end: none was lost.
        assert walk.taken
        assert walk.taken[-1] >= max(walk.asked)
    assert walk.taken == sorted(set(walk.taken))
