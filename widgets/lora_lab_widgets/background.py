"""Work that would hold up the heartbeat: one job at a time, on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of a job: its value, or the error that ended it."""

    value: T | None
    error: Exception | None
    seconds: float


class Background(Generic[T]):
    """Runs one job at a time; its outcome waits until somebody takes it.

    The thread touches no widget: results reach the browser with the next tick, since some hosts
    drop what a thread pushes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._outcome: Outcome[T] | None = None

    @property
    def busy(self) -> bool:
        """Whether a job runs, or its outcome has not been taken yet."""
        return self._busy

    @property
    def works(self) -> bool:
        """Whether a job runs now; one that has ended does not, though nobody took its outcome."""
        with self._lock:
            return self._busy and self._outcome is None

    def start(self, job: Callable[[], T]) -> bool:
        """Run `job` on a thread; False, and nothing is done, while another one is not over."""
        with self._lock:
            if self._busy:
                return False
            self._busy = True
        threading.Thread(target=self._run, args=(job,), daemon=True).start()
        return True

    def take(self) -> Outcome[T] | None:
        """Return the outcome of a job that ended, once; None while there is none."""
        with self._lock:
            outcome, self._outcome = self._outcome, None
            if outcome is not None:
                self._busy = False
        return outcome

    def _run(self, job: Callable[[], T]) -> None:
        start = time.monotonic()
        value: T | None = None
        failed: Exception | None = None
        try:
            value = job()
        except Exception as error:
            failed = error
        with self._lock:
            self._outcome = Outcome(value, failed, time.monotonic() - start)
