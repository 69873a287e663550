"""Ctrl-C at every place of what steers a run: afterwards it can be steered as before."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from lora_lab.errors import RunError
from tests.helpers.interrupted import cut
from tests.helpers.state_walks import IDLE, PAUSED, Walk, until


def visit(walk: Walk) -> None:
    with walk.control.visit(None):
        pass


def until_it_steps(walk: Walk) -> None:
    step = walk.step
    until(lambda: walk.step > step)


def assert_steerable(walk: Walk) -> None:
    """Assert that it pauses, goes on and ends when it is told to, and that its lock is free."""
    if walk.control.state is IDLE:
        walk.start()
    walk.control.pause()
    until(lambda: walk.control.state is PAUSED and walk.states[-1] is PAUSED)
    walk.control.resume()
    until_it_steps(walk)
    walk.control.stop()
    assert walk.control.wait(10)
    walk.states[:] = [state for state, _ in itertools.groupby(walk.states)]  # told twice is told
    walk.assert_legal()


VERBS: dict[str, Callable[[Walk], object]] = {
    "pause": lambda walk: walk.control.pause(),
    "resume": lambda walk: walk.control.resume(),
    "request_checkpoint": lambda walk: walk.control.request_checkpoint(),
    "stop": lambda walk: walk.control.stop(),
    "wait": lambda walk: walk.control.wait(0.02),
    "visit": visit,
    "start": lambda walk: walk.start(),
}


def walked(before: str) -> Walk:
    walk = Walk(seconds=0.0005)
    if before != "idle":
        walk.start()
    if before == "paused":
        walk.control.pause()
        until(lambda: walk.control.state is PAUSED)
    return walk


@pytest.mark.parametrize(
    ("before", "verb"),
    [
        *itertools.product(("running", "paused"), [v for v in VERBS if v != "start"]),
        ("idle", "start"),
        ("idle", "visit"),
    ],
)
def test_a_verb_that_is_interrupted_anywhere_leaves_a_run_that_can_be_steered(before, verb):
    for place in itertools.count():
        walk = walked(before)
        came_so_far = cut(lambda walk=walk: VERBS[verb](walk), place)
        if verb == "visit" and before == "running":
            until_it_steps(walk)  # nobody has it any more, or ever had
        if verb == "stop":
            walk.control.stop()
            assert walk.control.wait(10)
        else:
            assert_steerable(walk)
        if not came_so_far:
            assert place > 0
            return


def test_an_interrupt_as_a_lock_of_pythons_own_is_taken_leaves_none_taken():
    # threading.Condition is written in Python: Ctrl-C as its __enter__ returns kept the lock.
    for verb in ("pause", "resume", "visit", "request_checkpoint"):
        walk = Walk(seconds=0.0005).start()

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if frame.f_code.co_filename != threading.__file__ or event != "return":
                return trace
            sys.settrace(None)
            raise KeyboardInterrupt

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                VERBS[verb](walk)
        finally:
            sys.settrace(before)
        assert_steerable(walk)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers that interrupt")
def test_real_interrupts_of_visits_leave_no_visitor_behind():
    armed = False

    def interrupt(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    old, draw = signal.signal(signal.SIGALRM, interrupt), random.Random(1)
    walk = Walk(seconds=0.0005).start()
    try:
        for _ in range(150):
            with contextlib.suppress(KeyboardInterrupt):
                armed = True
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 5e-3))
                while True:
                    visit(walk)
            armed = False
            until_it_steps(walk)
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert_steerable(walk)


def test_waiting_from_another_thread_while_it_starts_is_no_error():
    for _ in range(50):
        walk = Walk(steps=2)
        raised: list[Exception] = []

        def waits(walk: Walk = walk, raised: list[Exception] = raised) -> None:
            while True:
                try:
                    if walk.control.wait(0.001):
                        return
                except RunError:
                    time.sleep(0)  # it has not started yet
                except Exception as error:
                    raised.append(error)
                    return

        thread = threading.Thread(target=waits)
        thread.start()
        walk.start()
        thread.join(10)
        assert raised == []
