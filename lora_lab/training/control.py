"""The state machine of a run: one worker thread, steered from any other thread.

Nothing here knows of models. All steering methods set a flag under one lock and return; the
worker looks at the flags at its boundaries, once an optimizer step.

Ctrl-C may come at any line of what is called in a cell. So the lock is one of C, which `with`
always lets go of; a flag is set before anything follows from it, and the worker, which no interrupt
reaches, makes up for what does not follow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lora_lab.errors import RunError
from lora_lab.methods.turns import is_at_work
from lora_lab.training import at_exit
from lora_lab.training.snapshot import RunState
from lora_lab.training.threads import Work, begin_thread, wait_until
from lora_lab.training.visits import Visit

T = TypeVar("T")

_LOOKS = 0.2  # seconds after which a worker at rest looks by itself whether it may go on
_SHORT = 0.001  # seconds between two looks of whoever waits for the other side


class Control:
    """Starts, pauses, resumes and stops one worker.

    Args:
        name: how error messages call the run.
        on_change: called with every new state, under the lock; must be quick.
        on_end: called when the worker's run is over, on its thread and without the lock.
    """

    def __init__(
        self,
        name: str,
        on_change: Callable[[RunState], None] = lambda _: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._on_change = on_change
        self._on_end = on_end
        self._lock = threading.RLock()
        self._woken = threading.Condition(self._lock)  # waited for by the worker alone
        self._state = RunState.IDLE
        self._told: RunState | None = RunState.IDLE  # what `on_change` was called with last
        self._pause_wanted = False
        self._stop_wanted = False
        self._checkpoint_wanted = False
        self._visits: tuple[Visit[Any], ...] = ()  # `paused()` blocks, some of them left by now
        self._resting = False  # the worker sits at a boundary and touches nothing
        self._thread: threading.Thread | None = None
        self._owner: int | None = None  # the process that it runs in, if it is not this one

    @property
    def state(self) -> RunState:
        """The state now."""
        state = self._state
        if state in (RunState.PAUSING, RunState.PAUSED) and not self.pause_wanted:
            return RunState.RUNNING  # the worker is about to say so itself
        return state

    @property
    def is_paused(self) -> bool:
        """Whether the worker rests, or is about to, until `resume` is called."""
        return self._pause_wanted and not (self._stop_wanted or self._state.final)

    def works(self) -> bool:
        """Whether the worker is between two boundaries, as any other thread sees it."""
        thread = self._thread
        alive = thread is not None and thread is not threading.current_thread()
        rests = self._resting and self.pause_wanted
        return alive and not (rests or self._state in _WAITING or self._state.final)

    # What any thread may call --------------------------------------------------------------------

    def start(self, work: Work, prepare: Work = lambda: None) -> None:
        """Run `work` on a thread of its own; `prepare` runs first, here, and may raise.

        A no-op if it runs already, or is queued. If `work` raises, the run has failed; it keeps its
        own record of why.

        Raises:
            RunError: the run was started before and is past running.
        """
        with self._lock:
            if self._may_start():
                self._run(work, prepare)

    def queue(self) -> None:
        """Wait in the queue: `begin` starts the run, `stop` takes it out. See `start`."""
        with self._lock:
            if self._may_start():
                self._enter(RunState.QUEUED)

    def begin(self, work: Work) -> bool:
        """Start a queued run; return whether it still was queued."""
        with self._lock:
            if self._state is not RunState.QUEUED:
                return False
            self._run(work)
            return True

    def pause(self) -> None:
        """Ask for a pause at the next boundary. A no-op if that is asked for already.

        Raises:
            RunError: the run is not running.
        """
        with self._lock:
            if self._state in _NOT_STEERED or self._state.final:
                raise self._refusal("pause", self._hint())
            self._pause_wanted = True
            self._hold()

    def resume(self) -> None:
        """Go on after a pause, or take back one that was asked for. A no-op while running.

        While a `paused()` block has the model, the run goes on when the block ends.

        Raises:
            RunError: the run has not started, is stopping, or is over.
        """
        with self._lock:
            if self._state in _NOT_STEERED or self._state.final:
                raise self._refusal("resume", self._hint())
            self._pause_wanted = False
            self._go_on()

    def request_checkpoint(self) -> None:
        """Ask for a checkpoint at the next boundary; asked for twice before that, it is one.

        Raises:
            RunError: the run has not started, is stopping, or is over.
        """
        with self._lock:
            if self._state in _NOT_STEERED or self._state.final:
                raise self._refusal("checkpoint", self._hint())
            self._checkpoint_wanted = True

    def stop(self) -> None:
        """Ask the run to end at the next boundary. A no-op if it is ending or over.

        A queued run leaves the queue and is done.

        Raises:
            RunError: the run has not started.
        """
        with self._lock:
            if self._state is RunState.IDLE:
                raise self._refusal("stop", self._hint())
            if self._state is RunState.STOPPING or self._state.final:
                self._make_up()
                return
            self._stop_wanted = True
            if self._state is RunState.QUEUED:
                self._enter(RunState.DONE)
            else:
                self._enter(RunState.STOPPING)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run is over; return whether it is.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            RunError: the run has not started, or this is its own thread, or that of a run which it
                is queued behind.
            KeyboardInterrupt: Ctrl-C; the run goes on, and the message says so.
        """
        if self._state is RunState.IDLE:
            raise self._refusal("wait for", self._hint())
        self._not_the_worker("wait()")
        if self._state is RunState.QUEUED and is_at_work():
            raise self._refusal("wait for", "it begins when the run whose thread this is has ended")

        def goes_on() -> str:
            queued = self._state is RunState.QUEUED
            where = "stays queued" if queued else "goes on in the background"
            return f"run {self.name} {where}; run.stop() ends it"

        return wait_until(self._over, self._wait_once, timeout, goes_on)

    def visit(self, value: T) -> Visit[T]:
        """Return a ``with`` block that holds the worker at a boundary, and is given `value`.

        The worker is there when the block is entered. It goes on afterwards unless it was paused
        before or pause() was called meanwhile. Idle and finished runs are simply entered.

        Raises:
            RunError: entered on the worker's own thread.
        """
        return Visit(self.admit, value)

    def admit(self, visit: Visit[Any]) -> None:
        """Wait until the worker rests, for this visit too; it does so until the visit ends.

        Raises:
            RunError: called on the worker's own thread.
        """
        self._not_the_worker("paused()")
        with self._lock:
            self._visits = (*filter(_is_open, self._visits), visit)
            self._hold()
        while not self._is_free():
            time.sleep(_SHORT)

    def become_copy(self, owner: int) -> None:
        """Be over: in a forked child no worker is there. Calls no `on_change`.

        Args:
            owner: the process that it runs in.
        """
        self._owner = owner
        self._lock = threading.RLock()  # a thread that is not here may have it
        self._woken = threading.Condition(self._lock)
        self._told = self._state = RunState.FAILED  # the child has no failure of its own to tell
        self._thread = None

    # What only the worker calls ------------------------------------------------------------------

    @property
    def stop_wanted(self) -> bool:
        """Whether the worker should come to its end."""
        return self._stop_wanted

    @property
    def pause_wanted(self) -> bool:
        """Whether the worker should rest at its next boundary."""
        wanted = self._pause_wanted and not self._stop_wanted
        return wanted or any(map(_is_open, self._visits))

    def take_checkpoint_request(self) -> bool:
        """Whether a checkpoint was asked for since this was last called."""
        with self._lock:
            self._make_up()
            wanted, self._checkpoint_wanted = self._checkpoint_wanted, False
            return wanted

    def rest(self, seconds: float | None = None) -> bool:
        """Sit at a boundary as long as a pause is wanted or somebody has the model.

        To be called first of all, too: somebody may have entered the run before it started.

        Args:
            seconds: how long at most; None: until the rest is over.

        Returns:
            Whether the rest goes on: the worker may do what needs neither the model nor anything
            of the notebook's, and then has to call this again.
        """
        end = None if seconds is None else time.monotonic() + seconds
        with self._lock:
            self._resting = True
            while self.pause_wanted:
                interrupted = self._state is RunState.RUNNING and self._pause_wanted
                if self._state is RunState.PAUSING or interrupted:
                    self._enter(RunState.PAUSED)
                self._make_up()
                looks = _SHORT if any(map(_is_open, self._visits)) else _LOOKS
                left = looks if end is None else min(looks, end - time.monotonic())
                if left <= 0:
                    return True
                self._woken.wait(left)
            self._resting = False
            self._go_on()
            return False

    # ---------------------------------------------------------------------------------------------

    def _may_start(self) -> bool:
        """Whether the run is idle; False where it starts or has started, else an error."""
        if self._state in (RunState.RUNNING, RunState.QUEUED):
            return False
        if self._state in (RunState.PAUSING, RunState.PAUSED):
            raise self._refusal("start", "call resume() to go on")
        if self._owner is not None:
            raise self._refusal("start", self._hint())
        if self._state is not RunState.IDLE:
            raise self._refusal("start", "a run trains once: call train() again")
        return True

    def _run(self, work: Work, prepare: Work = lambda: None) -> None:
        begin_thread(lambda: self._live(work), f"lora-lab {self.name}", self._keep, prepare)
        if self._state in _WAITING:  # else the worker was faster
            self._enter(RunState.RUNNING)

    def _keep(self, thread: threading.Thread | None) -> None:
        self._thread = thread

    def _over(self) -> bool:
        thread = self._thread
        return self._state.final and (thread is None or not thread.is_alive())

    def _wait_once(self, seconds: float) -> None:
        if (thread := self._thread) is not None:
            thread.join(seconds)
            return
        time.sleep(min(seconds, 10 * _SHORT))  # it is queued

    def _live(self, work: Work) -> None:
        at_exit.thread_began()
        with self._lock:  # for which it waits until `start` has ended
            if self._state in _WAITING:
                self._enter(RunState.RUNNING)
        end = RunState.FAILED
        try:
            work()
            end = RunState.DONE
        except Exception:
            pass  # `work` has kept it; a thread must not print it
        finally:
            with self._lock:
                self._enter(end)
            self._on_end()

    def _enter(self, state: RunState) -> None:
        self._state = state
        self._make_up()
        self._woken.notify_all()

    def _make_up(self) -> None:
        """Tell of the state now, unless that was done: an interrupt may have come between."""
        if (state := self._state) is not self._told:
            self._told = None  # whether it is heard is not known until the call returns
            self._on_change(state)
            self._told = state

    def _hold(self) -> None:
        """Say that the run pauses, or that it rests already: it may not have left its boundary."""
        if self._state is RunState.RUNNING:
            self._enter(RunState.PAUSED if self._resting else RunState.PAUSING)

    def _go_on(self) -> None:
        """Say that the run runs, if nothing holds it any more, and wake the worker."""
        if self._state in (RunState.PAUSING, RunState.PAUSED) and not self.pause_wanted:
            self._enter(RunState.RUNNING)
        self._woken.notify_all()

    def _is_free(self) -> bool:
        """Whether no worker is at the model, nor can be before all visits have ended."""
        with self._lock:
            return self._resting or self._state in _WAITING or self._state.final

    def _not_the_worker(self, what: str) -> None:
        if threading.current_thread() is self._thread:
            raise RunError(
                f"run {self.name}: {what} was called on the run's own thread and would never return"
            )

    def _hint(self) -> str:
        if self._owner is not None:
            return f"it is the copy of a run that trains in process {self._owner}; steer it there"
        if self._state is RunState.IDLE:
            return "call start() first"
        if self._state is RunState.QUEUED:
            return "it starts by itself when its turn comes; stop() takes it out of the queue"
        if self._state is RunState.STOPPING:
            return "wait() until it is done"
        return "call train() for a new run"

    def _refusal(self, verb: str, hint: str) -> RunError:
        state = "has not started" if self._state is RunState.IDLE else f"is {self._state}"
        return RunError(f"cannot {verb} run {self.name}: it {state}; {hint}")


def _is_open(visit: Visit[Any]) -> bool:
    return not visit.closed


_WAITING = (RunState.IDLE, RunState.QUEUED)  # no worker is there yet
_NOT_STEERED = (*_WAITING, RunState.STOPPING)
