"""A sweep on this machine: one cell after another, on a thread, the notebook stays yours."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_lab.errors import RunError
from lora_lab.methods.attached import attached
from lora_lab.methods.turns import is_at_work
from lora_lab.runs.records import RunRecord, list_runs
from lora_lab.sweeps.asha import AshaConfig
from lora_lab.sweeps.cell_run import train_cell
from lora_lab.sweeps.cells import Cell
from lora_lab.sweeps.store import CellResult, SweepStore, as_begun
from lora_lab.training import at_exit
from lora_lab.training.fingerprints import body_fingerprint, task_fingerprints
from lora_lab.training.isolation import ADAPTER
from lora_lab.training.run import Run
from lora_lab.training.threads import begin_thread, wait_until
from lora_lab.training.visits import Visit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

_LOOKS = 0.5  # seconds between two looks at cells that other processes train
_SHORT = 0.01  # seconds between two looks whether somebody has the model, or wants an end

SweepState = Literal["idle", "running", "stopping", "stopped", "done", "failed"]


@dataclass(frozen=True)
class SweepSnapshot:
    """A sweep at one moment: immutable, from any thread.

    Attributes:
        state: how it stands.
        total: cells in all.
        ended: {cell: how it ended}, those of earlier calls too.
        skipped: cells that an earlier call had finished.
        cell: the one that is trained now.
        run: its run; None between two cells.
        elsewhere: cells that other processes train meanwhile.
        seconds: that the cells of this call took which have ended.
        problem: one line, where the sweep itself failed.
    """

    state: SweepState = "idle"
    total: int = 0
    ended: Mapping[str, CellResult] = field(default_factory=dict)
    skipped: int = 0
    cell: Cell | None = None
    run: Run | None = None
    elsewhere: frozenset[str] = frozenset()
    seconds: float = 0.0
    problem: str = ""

    @property
    def going(self) -> bool:
        """Whether cells are trained."""
        return self.state in ("running", "stopping")


class Sweep:
    """Many runs, one after another in the background.

    Attributes:
        cells: what is trained, in order.
        folder: where the plan, the results and the runs' folders are.
        wait_at_exit: whether a script that ends meanwhile waits for it; else it stops.
    """

    def __init__(
        self,
        lm: LoadedModel,
        task: Task,
        cells: Sequence[Cell],
        folder: Path,
        asha: AshaConfig | None = None,
    ) -> None:
        self.lm = lm
        self.task = task
        if asha is not None:
            every = (cell.training.for_examples(len(task.train)) for cell in cells)
            asha.check(training.max_steps for training in every)
        self.cells = as_begun(cells, folder)
        self.folder = folder
        self.asha = asha
        self.wait_at_exit = True
        self._store = SweepStore(folder)
        self._stop_wanted = False
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()
        self._changing = threading.RLock()  # held while a cell begins or ends
        self._visits: tuple[Visit[Any], ...] = ()  # `paused()` blocks, some of them left by now
        self._snapshot = SweepSnapshot(total=len(self.cells))

    def __repr__(self) -> str:
        seen = self.snapshot
        return f"<Sweep {self.folder.name}: {seen.state}, {len(seen.ended)} of {seen.total} cells>"

    @property
    def title(self) -> str:
        """What lines for people call it."""
        return f"sweep {self.folder.name}"

    @property
    def is_paused(self) -> bool:
        """Whether the run that trains now rests until its `resume` is called."""
        run = self._snapshot.run
        return run is not None and run.is_paused

    @property
    def snapshot(self) -> SweepSnapshot:
        """How the sweep stands."""
        at_exit.seen(self)
        return self._snapshot

    def start(self) -> Sweep:
        """Train what has not been trained yet; return self. A no-op once started.

        Several processes may train one sweep: each cell is trained by one of them, goes on in
        another if that one is killed, and all wait until the last cell has ended.

        Raises:
            RunError: the folder belongs to another sweep, or cannot be written.
        """
        with self._lock:
            if self._thread is None:
                self._store.begin(told(self.lm, self.task), self.cells)
                if ADAPTER in attached(self.lm.model):
                    warnings.warn(
                        f"the sweep takes the adapter {ADAPTER!r} off the model", stacklevel=2
                    )
                begin_thread(self._work, "lora-lab sweep", self._keep)
                self._begin()
        return self

    def stop(self) -> None:
        """End after the optimizer step that is under way; a later call goes on from there."""
        self._stop_wanted = True  # first: an interrupt may come after it
        with self._lock:
            if self._snapshot.state == "running":
                self._publish(state="stopping")
        if run := self._snapshot.run:
            run.stop()

    def paused(self) -> AbstractContextManager[PreTrainedModel]:
        """Return a ``with`` block that has the model while the sweep rests.

        It does so within a cell or between two of them; see `Run.paused`. Of a sweep that is over,
        simply the model.
        """
        return Visit(self._admit, self.lm.model)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the sweep is over; return whether it is.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            RunError: it has not started, or this is its own thread, or that of a run, for whose end
                its cells wait.
            KeyboardInterrupt: Ctrl-C; the sweep goes on, and the message says so.
        """
        if (thread := self._thread) is None:
            raise RunError("the sweep has not started; call start() first")
        own = thread is threading.current_thread() or is_at_work()
        if own and thread.is_alive():
            raise RunError(
                f"{self.title}: wait() was called on a thread that its cells wait for, and would "
                "never return"
            )
        goes_on = f"{self.title} goes on in the background; sweep.stop() ends it"
        return wait_until(lambda: not thread.is_alive(), thread.join, timeout, lambda: goes_on)

    def results(self, timeout: float | None = None) -> dict[str, CellResult]:
        """Wait until the sweep is over and return {cell: how it ended}.

        Raises:
            RunError: it is not over after `timeout` seconds, or the sweep itself failed.
        """
        if not self.wait(timeout):
            raise RunError(f"the sweep is still running after {timeout:g} s")
        if self.snapshot.state == "failed":
            raise RunError(self._snapshot.problem)
        return dict(self._snapshot.ended)

    def records(self) -> list[RunRecord]:
        """Return the runs on disk, for `analysis.sweep_map` and `analysis.compare_methods`."""
        return list_runs(self.folder)

    def outcome(self) -> str:
        """Return in one line how the sweep ended, and how to go on with it."""
        seen = self.snapshot
        if seen.state == "failed":
            return f"{self.title}: {seen.problem}"
        state = "was cut off" if seen.going else f"is {seen.state}"
        failed = sum(result.state == "failed" for result in seen.ended.values())
        some = f", {failed} failed" if failed else ""
        again = "; the same call of sweep() goes on with it" if failed or state != "is done" else ""
        return f"{self.title} {state}: {len(seen.ended)} of {seen.total} cells{some}{again}"

    def become_copy(self, owner: int) -> None:
        """Let go of the sweep: this process is a forked child of the one that trains it."""
        self._lock, self._changing = threading.RLock(), threading.RLock()
        self._publish(state="failed", problem=f"it trains in process {owner}", run=None, cell=None)

    def _keep(self, thread: threading.Thread | None) -> None:
        self._thread = thread

    def _begin(self) -> None:
        """Say that it runs. By its own thread too: Ctrl-C may keep `start` from it."""
        with self._lock:
            if self._snapshot.state == "idle":
                self._publish(state="running")
                at_exit.add(self)

    def _admit(self, visit: Visit[Any]) -> None:
        """Wait until no cell begins or ends, nor trains, before the visit has ended."""
        with self._changing:
            self._visits = (*(each for each in self._visits if not each.closed), visit)
            run = self._snapshot.run
        if run is not None:
            run.control.admit(visit)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Have no visitor in the block, in which a cell begins or ends."""
        while True:
            with self._changing:
                if all(visit.closed for visit in self._visits):
                    yield
                    return
            time.sleep(_SHORT)

    def _look_away(self, seconds: float) -> None:
        """Let time go by, unless the sweep is to end."""
        end = time.monotonic() + seconds
        while not self._stop_wanted and time.monotonic() < end:
            time.sleep(_SHORT)

    def _work(self) -> None:
        self._begin()  # for which it waits until `start` has ended
        at_exit.thread_began()
        try:
            state = self._train_all()
        except Exception as error:
            self._publish(state="failed", problem=f"the sweep failed: {error}", run=None, cell=None)
        else:
            self._publish(state=state, run=None, cell=None)
        finally:
            seen = self._snapshot
            failed = seen.state == "failed" or any(r.state == "failed" for r in seen.ended.values())
            at_exit.discard(self, failed=failed)

    def _train_all(self) -> SweepState:
        ids = {cell.id for cell in self.cells}
        since = self._store.written()
        ended = {k: v for k, v in self._store.ended().items() if k in ids and v.state != "failed"}
        self._publish(ended=dict(ended), skipped=len(ended))
        left = [cell for cell in self.cells if cell.id not in ended]
        while left:
            for cell in left:
                if self._stop_wanted:
                    return "stopped"
                began = time.monotonic()
                result = self._train_one(cell, since)
                if result is None:
                    self._publish(elsewhere=self._snapshot.elsewhere | {cell.id})
                    continue
                ended[cell.id] = result
                seconds = self._snapshot.seconds + time.monotonic() - began
                self._publish(ended=dict(ended), run=None, seconds=seconds)
            left = [cell for cell in left if cell.id not in ended]
            self._publish(cell=None, elsewhere=frozenset(cell.id for cell in left))
            self._look_away(_LOOKS if left else 0)
        return "stopped" if self._stop_wanted else "done"

    def _train_one(self, cell: Cell, since: int) -> CellResult | None:
        """Return how a cell ended; None where another process is at it, or somebody stopped it."""
        with self._store.claim(cell.id) as mine:
            result = self._store.ended(since).get(cell.id)  # elsewhere, meanwhile
            if result is not None or not mine:
                return result
            self._publish(cell=cell)
            result = train_cell(
                self.lm,
                self.task,
                cell,
                self._store,
                self.asha,
                self._started,
                self._alone,
            )
            if result is None:
                self._stop_wanted = True  # the next call goes on with it
            else:
                self._store.add(result)
            return result

    def _started(self, run: Run) -> None:
        self._publish(run=run)
        if self._stop_wanted:
            run.stop()

    def _publish(self, **changes: Any) -> None:
        with self._lock:  # two threads must not each replace the other's news
            self._snapshot = replace(self._snapshot, **changes)


def told(lm: LoadedModel, task: Task) -> dict[str, Any]:
    """Return what all cells of a sweep have in common, as plain values; see `SweepStore.begin`."""
    card = lm.card
    return {
        "model": {
            "name": card.name,
            "dtype": card.dtype,
            "parameters": card.parameters,
            "body": body_fingerprint(lm.model),
        },
        "task": {"name": task.name, "examples": len(task.train), **task_fingerprints(task)},
    }
