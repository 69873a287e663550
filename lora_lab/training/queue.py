"""One run trains at a time in a process, unless told otherwise; the others are queued.

Two at once would share the processor and the device's memory: so it is asked for.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab._util.devices import device_of
from lora_lab.errors import RunError
from lora_lab.training import processes
from lora_lab.training.announced import announce, withdraw
from lora_lab.training.snapshot import RunState

if TYPE_CHECKING:
    from lora_lab.training.run import Run

_lock = threading.RLock()
_training: list[Run] = []  # those that were started, and may be over by now
_waiting: deque[Run] = deque()


def start(run: Run, beside: bool = False) -> None:
    """Start a run, or queue it behind those that train or wait.

    Args:
        run: any.
        beside: start it at once, beside those that train.

    Raises:
        LoraLabError: what `Run` raises when it prepares; the run stays idle.
    """
    with _lock:
        if run.control.state is not RunState.IDLE:
            run.start_now()  # nothing, or the reason why not
        elif (_busy() or _waiting) and not beside:
            try:
                announce(run, [*_busy(), *_waiting])
                _waiting.append(run)  # first: an interrupt may come after it
                run.control.queue()
            except BaseException:
                if run.control.state is RunState.IDLE:
                    dequeue(run)
                    withdraw(run)
                raise
            _tell()
        else:
            others = _busy()
            _check_apart(run, others)
            _training.append(run)
            run.start_now()
            for one in (run, *others) if others and device_of(run.model).type != "cpu" else ():
                one.notes.append("the memory measured is that of runs beside each other, together")


def start_next() -> None:
    """Start the next queued run if none trains. Called by a run that is over."""
    with _lock:
        while _waiting and not _busy():
            run = _waiting.popleft()
            if run.begin():
                _training.append(run)
        _tell()


def dequeue(run: Run) -> None:
    """Forget a queued run that was stopped."""
    with _lock:
        if run in _waiting:
            _waiting.remove(run)
        _tell()


def is_queued(folder: Path) -> bool:
    """Return whether a run of this folder is queued."""
    with _lock:
        return any(run.folder == folder for run in _waiting)


def _busy() -> list[Run]:
    """Return the runs that train."""
    states = [(run, run.control.state) for run in _training]
    _training[:] = [run for run, s in states if s is not RunState.IDLE and not s.final]
    return [*_training]


def _check_apart(run: Run, others: list[Run]) -> None:
    """Refuse to train beside runs that the same weights belong to."""
    if others and processes.count() > 1:
        raise RunError("runs beside each other in several processes would wait for each other")
    own = {id(parameter) for parameter in run.model.parameters()}
    for other in others:
        if any(id(parameter) in own for parameter in other.model.parameters()):
            raise RunError(
                f"run {other.id} trains on this very model; start() queues run {run.id} behind "
                "it, and load_model gives another copy to train beside it"
            )


def _tell() -> None:
    """Have every queued run say behind which one it is."""
    before = next(reversed(_busy()), None)
    for run in _waiting:
        if before is not None:
            run.publish(phase=f"queued behind run {before.id}")
        before = run


def _forked() -> None:
    """Have nothing train in a forked child: no thread of its parent's is there."""
    global _lock
    _lock = threading.RLock()
    _training.clear()
    _waiting.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
