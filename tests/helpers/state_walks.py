"""A control with a worker that does nothing, and every state that it went through."""

from __future__ import annotations

import threading
import time

from lora_lab.training.control import Control
from lora_lab.training.snapshot import RunState

IDLE, QUEUED, RUNNING, PAUSING, PAUSED, STOPPING, DONE, FAILED = RunState

LEGAL = {
    IDLE: {RUNNING, QUEUED},
    QUEUED: {RUNNING, DONE},
    RUNNING: {PAUSING, PAUSED, STOPPING, DONE, FAILED},
    PAUSING: {RUNNING, PAUSED, STOPPING, DONE, FAILED},
    PAUSED: {RUNNING, STOPPING},
    STOPPING: {DONE, FAILED},
    DONE: set(),
    FAILED: set(),
}


class Walk:
    """A control with its worker, recording every state."""

    def __init__(self, steps: int | None = None, seconds: float = 0.0) -> None:
        self.states: list[RunState] = [IDLE]
        self.control = Control("walk", self.states.append)
        self.steps = steps
        self.seconds = seconds
        self.step = 0
        self.asked: list[int] = []  # the step at which a checkpoint was asked for
        self.taken: list[int] = []  # and at which one was written
        self.within = threading.Event()  # set while the worker is not at a boundary

    def work(self) -> None:
        self.control.rest()
        while self.steps is None or self.step < self.steps:
            self.within.set()
            if self.seconds:
                time.sleep(self.seconds)
            self.step += 1
            self.within.clear()
            self.control.rest()
            if self.control.take_checkpoint_request():
                self.taken.append(self.step)
            if self.control.stop_wanted:
                return

    def start(self) -> Walk:
        self.control.start(self.work)
        return self

    def assert_legal(self) -> None:
        pairs = list(zip(self.states, self.states[1:], strict=False))
        assert [(a, b) for a, b in pairs if b not in LEGAL[a]] == []


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)
