"""One run trains at a time in a process; the others are queued, and start by themselves.

accelerate keeps its state once a process, and building a second Trainer resets it under the first:
so it is one run, whatever its model.
"""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.training.snapshot import RunState

if TYPE_CHECKING:
    from lora_lab.training.run import Run

_lock = threading.RLock()
_training: Run | None = None  # the one that was started last
_waiting: deque[Run] = deque()


def start(run: Run) -> None:
    """Start a run, or queue it behind those that train or wait.

    Raises:
        LoraLabError: what `Run` raises when it prepares; the run stays idle.
    """
    global _training
    with _lock:
        if run.control.state is not RunState.IDLE:
            run.start_now()  # nothing, or the reason why not
        elif _busy() or _waiting:
            run.control.queue()
            _waiting.append(run)
            _tell()
        else:
            run.start_now()
            _training = run


def start_next() -> None:
    """Start the next queued run if none trains. Called by a run that is over."""
    global _training
    with _lock:
        while _waiting and not _busy():
            run = _waiting.popleft()
            if run.begin():
                _training = run
        if not _busy():
            _training = None
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


def _busy() -> bool:
    state = RunState.IDLE if _training is None else _training.state
    return state is not RunState.IDLE and not state.final


def _tell() -> None:
    """Have every queued run say behind which one it is."""
    before = _training
    for run in _waiting:
        if before is not None:
            run.publish(phase=f"queued behind run {before.id}")
        before = run
