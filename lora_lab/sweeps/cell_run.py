"""One cell of a sweep, trained to its end or until ASHA ends it; the same on every engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from lora_lab._util.own_warnings import collected
from lora_lab.errors import AdapterError, LoraLabError, RunError
from lora_lab.methods.api import detach
from lora_lab.methods.combined import as_config
from lora_lab.methods.turns import turn
from lora_lab.runs.records import RecordState
from lora_lab.sweeps.asha import Asha, AshaConfig
from lora_lab.sweeps.cells import Cell
from lora_lab.sweeps.store import CellResult, CellState, SweepStore
from lora_lab.training.resume import resume
from lora_lab.training.run import Run
from lora_lab.training.snapshot import RunState

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task

_LOOKS = 0.05  # seconds between two looks at a running cell
_WINDOW = 10  # optimizer steps whose mean loss a rung compares


def train_cell(
    lm: LoadedModel,
    task: Task,
    cell: Cell,
    store: SweepStore,
    asha: AshaConfig | None = None,
    started: Callable[[Run], None] = lambda _run: None,
    alone: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> CellResult | None:
    """Train a cell; one that was cut off goes on from its last checkpoint.

    A run that has come to its end without the sweep, resumed by hand or just before its process
    was killed, is not trained again.

    The model is given back as it was, without the cell's adapter. None is returned where somebody
    stopped the cell's run, a process that ends among them: it has not ended, and can go on.

    Args:
        lm: the model that all cells adapt, one after another.
        task: the data.
        cell: what to train.
        store: where its run's folder goes. The result is returned, not written.
        asha: ends it early, if it is behind what the sweep's other cells had come to.
        started: told the run as soon as it runs.
        alone: makes the block in which an adapter comes onto the model or goes off it.
    """
    if (finished := _finished(cell, store)) is not None:
        return finished
    seen: dict[int, float] = {}
    run: Run | None = None
    try:
        with alone(), collected():  # on this thread they would be printed into some cell
            run = _resumed(lm, task, cell, store) or _new(lm, task, cell, store)
            started(run)
        stopped = False
        waiting = [] if asha is None else list(asha.rungs(run.training.max_steps))
        while not run.wait(_LOOKS):
            if asha and waiting and not stopped and run.snapshot.step >= waiting[0]:
                rung = waiting.pop(0)
                seen[rung] = _loss_at(run, rung)
                rule = Asha(asha, {rung: _losses_at(store, cell, rung, seen[rung])})
                if not rule.goes_on(rung, seen[rung]):
                    stopped = True
                    run.stop()
        return _result(cell, run, seen, stopped)
    except LoraLabError as error:
        name, step = (run.id, run.snapshot.step) if run else ("", 0)
        return CellResult(cell.id, "failed", name, step, {}, seen, str(error))
    finally:
        with alone():
            _take_off(run)


def _losses_at(store: SweepStore, cell: Cell, rung: int, loss: float) -> list[float]:
    """Tell the sweep's other processes of a cell's loss at a rung; return those of the others."""
    with contextlib.suppress(RunError):  # of the disk; the cell's own line will tell of it
        store.add_rung(cell.id, rung, loss)
        return store.losses_at(rung, but=cell.id)
    return []


def _result(cell: Cell, run: Run, seen: Mapping[int, float], stopped: bool) -> CellResult | None:
    """Return how a cell's run ended; None: somebody stopped it, and not the sweep's rule."""
    snapshot = run.snapshot
    if snapshot.state is RunState.FAILED:
        problem = snapshot.failure.message if snapshot.failure else ""
        return CellResult(cell.id, "failed", run.id, snapshot.step, {}, seen, problem)
    early = snapshot.step < snapshot.total_steps and not snapshot.stopped_early
    if early and not stopped:
        return None
    state: CellState = "stopped early" if early else "done"
    return CellResult(cell.id, state, run.id, snapshot.step, dict(snapshot.metrics), seen)


def _take_off(run: Run | None) -> None:
    """Take the run's own adapter off: the next queued run may have its own there by now."""
    if run is not None and run.adapter is not None and run.is_attached:
        # The next queued run may be faster, or somebody may have the model.
        with contextlib.suppress(AdapterError), turn(run.model):
            detach(run.model, run.adapter.name)


def _finished(cell: Cell, store: SweepStore) -> CellResult | None:
    """Return how the cell's run ended, if it is done."""
    record = store.run_of(cell.id)
    if record is None or record.state is not RecordState.DONE:
        return None
    metrics, steps = record.open().metrics, (record.summary or {}).get("steps")
    step = cell.training.max_steps if steps is None else steps
    return CellResult(cell.id, "done", record.id, step, metrics, {})


def _resumed(lm: LoadedModel, task: Task, cell: Cell, store: SweepStore) -> Run | None:
    """Go on with the cell's run, if there is one that can be gone on from."""
    record = store.run_of(cell.id)
    if record is None or record.state not in (RecordState.CUT_OFF, RecordState.STOPPED):
        return None
    return resume(record, lm, task)


def _new(lm: LoadedModel, task: Task, cell: Cell, store: SweepStore) -> Run:
    config = as_config(cell.configs)
    return Run(lm, task, config, cell.training, store.folder, cell.id).start()


def _loss_at(run: Run, step: int) -> float:
    """Return the mean loss of the steps up to this one, as far as they are known."""
    near = [loss for at, loss in run.snapshot.losses if step - _WINDOW < at <= step]
    return float(np.mean(near)) if near else float("nan")
