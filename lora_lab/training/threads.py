"""Threads that begin whole or not at all, and are waited for, wherever Ctrl-C comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

Work = Callable[[], None]

_SHORT = 0.001  # seconds between two looks whether a thread has begun
_JOINED = 0.1  # seconds of one join: where a lock cannot be interrupted, Ctrl-C comes after it


def begin_thread(
    work: Work,
    name: str,
    keep: Callable[[threading.Thread | None], None],
    prepare: Work = lambda: None,
) -> None:
    """Run `work` on a thread of its own, which no end of this process waits for.

    Args:
        work: what it does.
        name: of the thread.
        keep: is given the thread before it works; and None where it never will.
        prepare: runs before, here, and may raise: then nothing has begun.
    """
    given: SimpleQueue[bool] = SimpleQueue()
    begun = False

    def live() -> None:
        nonlocal begun
        if given.get():
            begun = True
            work()

    thread = threading.Thread(target=live, name=name, daemon=True)
    try:
        thread.start()  # before anything else: from here on one call decides that it works
        prepare()
        keep(thread)
        given.put(True)
    except BaseException:
        given.put(False)  # never read if it works already
        while thread.is_alive() and not begun:
            time.sleep(_SHORT)
        if not begun:
            keep(None)
        raise


def wait_until(
    over: Callable[[], bool],
    once: Callable[[float], object],
    timeout: float | None,
    goes_on: Callable[[], str],
) -> bool:
    """Wait for what a thread does; return whether it is over.

    Args:
        over: whether it is.
        once: waits for so many seconds, or until it is.
        timeout: seconds; None waits for ever.
        goes_on: what to say of it when Ctrl-C ends the wait.

    Raises:
        KeyboardInterrupt: Ctrl-C; the message says that it goes on.
    """
    end = None if timeout is None else time.monotonic() + timeout
    try:
        while not over():
            left = _JOINED if end is None else min(_JOINED, end - time.monotonic())
            if left <= 0:
                break
            once(left)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(goes_on()) from None
    return over()
