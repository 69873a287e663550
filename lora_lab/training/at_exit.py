"""What becomes of what trains when its process ends, or forks.

A script whose last line starts a run is waited for. A notebook's kernel is not: whoever ends it
gives it seconds. What is not waited for ends at its next step, with a checkpoint. A script is not
called a success if what it has begun has failed, and it has not looked.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from lora_lab._util.python_private import end_with_failure, when_main_ends
from lora_lab.errors import visible

_LOOKS = 0.2  # seconds between two looks at what trains
_GRACE_SECONDS = 10.0  # that a kernel gives a step to end in; it is killed soon after
_LEAVING_SECONDS = 1.0  # that a thread may take to leave, when all that it had to do is done


class Job(Protocol):
    """What trains on a thread of its own: a run, or a sweep.

    Attributes:
        folder: its own; a sweep's holds those of its runs.
        wait_at_exit: whether a script's end waits for it.
    """

    folder: Path
    wait_at_exit: bool

    @property
    def title(self) -> str:
        """What to call it, such as "run <id>"."""

    @property
    def is_paused(self) -> bool:
        """Whether it rests until somebody calls its `resume`."""

    def stop(self) -> None:
        """End at the next step, saved. Doing it twice is no error."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is over; return whether it is."""

    def outcome(self) -> str:
        """Return in one line how it ended, and how to go on with it."""

    def become_copy(self, owner: int) -> None:
        """Be what a forked child has of it: it trains in the process `owner`, and only there."""


_jobs: list[Job] = []  # queued or at work, in the order of their starts
_failures: dict[str, str] = {}  # {title: outcome} of jobs that nobody has asked how they stand
_threads: list[int] = []  # the system's numbers of those that jobs had
_begun_in_marimo = False


def add(job: Job) -> None:
    """Look after a job from now on. Doing it twice is no error."""
    global _begun_in_marimo
    if job not in _jobs:
        _jobs.append(job)
        _begun_in_marimo = _begun_in_marimo or _in_marimo()


def discard(job: Job, *, failed: bool = False) -> None:
    """Forget a job that is over, but for a failure. Doing it twice is no error."""
    if failed:
        _failures[job.title] = job.outcome()
    with contextlib.suppress(ValueError):
        _jobs.remove(job)


def seen(job: Job) -> None:
    """Forget a failure: somebody asks how the job stands."""
    if _failures:
        _failures.pop(job.title, None)


def thread_began() -> None:
    """Be told that this thread is a job's."""
    _threads.append(threading.get_native_id())


def jobs() -> tuple[Job, ...]:
    """Return what is queued or at work, in the order of their starts."""
    return tuple(_jobs)


def _main_has_ended() -> None:
    """Wait for what trains, or end it."""
    known = _outermost()
    deadline: float | None = None
    interrupted = False
    if _in_notebook_kernel():
        deadline = time.monotonic() + _GRACE_SECONDS
    elif not _was_interrupted():
        try:
            _wait()
        except KeyboardInterrupt:
            interrupted = True
    with contextlib.suppress(KeyboardInterrupt):  # nobody wants to wait for the step, either
        for job in reversed(known):  # the queued ones first: the end of one would start the next
            job.stop()
        for job in known:
            job.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    failed = dict(_failures)
    for line in (failed | {job.title: job.outcome() for job in known}).values():
        _say(line)
    _wait_until_threads_have_left()
    if (failed or interrupted) and deadline is None:
        end_with_failure()


def _wait() -> None:
    """Wait until nothing trains; what is not to be waited for is stopped, and ends at a step."""
    told: list[Job] = []
    while left := _outermost():
        for job in [job for job in left if job not in told and job.wait_at_exit]:
            told.append(job)
            _say(f"waiting for {job.title}; Ctrl-C ends it at its next step, with a checkpoint")
        for job in reversed(left):
            if job.is_paused:
                _say(f"{job.title} is paused, and nobody is left to resume it: it ends here")
            if job.is_paused or not job.wait_at_exit:
                job.stop()
        if left[0].wait(_LOOKS):
            discard(left[0])  # its own end may have been interrupted before it came to that


def _wait_until_threads_have_left() -> None:
    """Wait for what follows the end of a thread that Python knows of, where the system tells.

    A thread that ran a backward pass lets go of Python objects there, before torch 2.13; if the
    interpreter is taken apart meanwhile, the process is aborted.
    """
    end = time.monotonic() + _LEAVING_SECONDS
    while any(map(_is_there, _threads)) and time.monotonic() < end:
        time.sleep(0.001)


def _is_there(thread: int) -> bool:
    return os.path.exists(f"/proc/self/task/{thread}")


def _outermost() -> list[Job]:
    """Return what trains, without the runs of the sweeps among it."""
    folders = {job.folder.resolve() for job in _jobs}
    return [job for job in _jobs if job.folder.resolve().parent not in folders]


def _in_notebook_kernel() -> bool:
    """Whether this is a notebook's kernel: marimo's, or one that IPython knows, as ipykernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None or _begun_in_marimo


def _in_marimo() -> bool:
    """Whether this thread runs a marimo notebook's cells, and not as a script.

    It no longer knows when the process ends, and with `marimo run` other threads never do.
    """
    running = getattr(sys.modules.get("marimo"), "running_in_notebook", None)
    return running is not None and running()


def _was_interrupted() -> bool:
    """Whether Ctrl-C ended the script."""
    return getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody may listen any more
        print(f"lora-lab: {visible(line)}", file=sys.__stderr__, flush=True)


def _forked() -> None:
    if _jobs:
        # A child that ends as scripts do collects all that it shares with its parent first, which
        # copies the pages that it lies on: seconds, beside a run that has the processor.
        gc.freeze()
    for job in _jobs:
        job.become_copy(os.getppid())
    _jobs.clear()
    _threads.clear()
    _failures.clear()


when_main_ends(_main_has_ended)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
