"""What a heartbeat tells the browser: at most five messages a second, each view in its turn.

A view may change ten traits at one tick, and each of them would be a message. So what views change
while a tick is at work on them, or while a run is being started, waits: of one widget it goes
together, of several in the order in which they began to wait, and what a second has no room for
goes with a later tick. What else people do, in the browser or in a cell, is never held back.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ipywidgets

from lora_lab.redaction import redacted_values
from lora_lab_widgets.subshell import OnSubshell

# The ticks' answers are three a second at most, see `run_clock.js`; the views have what is left.
MOST = 2  # messages of views
SPAN = 1.1  # seconds in which at most so many leave; a second, and what the way may shorten it by


class MessageThrottle:
    """The messages of one heartbeat's views. Ticks and cells may use it from several threads.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a widget that is sent may have something more to send
        self._left: deque[float] = deque(maxlen=MOST)  # when the latest messages left
        self._line: dict[Throttled, set[str]] = {}  # what waits, in the order of their turns

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let what this thread changes meanwhile wait, then send what there is room for."""
        with self.collect():
            yield
        self.deliver()

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Let what this thread changes in `Throttled` widgets wait for `deliver`."""
        before, _AT_WORK.throttle = current_throttle(), self
        try:
            yield
        finally:
            _AT_WORK.throttle = before

    def take(self, widget: Throttled, names: Iterable[str]) -> None:
        """Keep traits of a widget that are to be sent."""
        with self._lock:
            self._line.setdefault(widget, set()).update(names)

    def deliver(self) -> None:
        """Send what waits, as far as there is room."""
        with self._lock:
            while self._line and self._room() > 0:
                widget = next(iter(self._line))
                widget.send_state(self._line.pop(widget))
                self._left.append(self._clock())

    def _room(self) -> int:
        since = self._clock() - SPAN
        return MOST - sum(moment > since for moment in self._left)


class Throttled(OnSubshell):
    """A widget whose changes wait while a tick is at work; see `MessageThrottle`.

    What it holds for the page, and a notebook saves with it, has no secret in it.
    """

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """Return what is sent and saved; its own code is not looked through."""
        state: dict[str, Any] = super().get_state(key, drop_defaults)
        code = {name: state[name] for name in ("_esm", "_css") if name in state}
        return {**redacted_values({k: v for k, v in state.items() if k not in code}), **code}

    def send_state(self, key: Any = None) -> None:
        """Send traits to the browser, or hand them to the throttle of the tick at work here."""
        throttle = current_throttle()
        if throttle is None or key is None:
            super().send_state(key)
        else:
            throttle.take(self, {key} if isinstance(key, str) else key)


class Line(Throttled, ipywidgets.HTML):
    """A line of HTML that a tick changes."""


class Picker(Throttled, ipywidgets.Dropdown):
    """A choice that a tick changes."""


_AT_WORK = threading.local()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let nothing wait meanwhile, at a tick either: for what people do, such as a page resized."""
    throttle, _AT_WORK.throttle = current_throttle(), None
    try:
        yield
    finally:
        _AT_WORK.throttle = throttle


def current_throttle() -> MessageThrottle | None:
    """Return the throttle of the tick that is at work on this thread, None outside of one."""
    return getattr(_AT_WORK, "throttle", None)
