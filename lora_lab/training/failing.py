"""How a run fails: with the true reason, its last good adapter, and what people can do."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_lab._util.hardware import is_out_of_memory
from lora_lab.errors import RunError
from lora_lab.training import device_memory, lost_adapter
from lora_lab.training.divergence import DivergingError
from lora_lab.training.failures import explain, showable, with_proposal
from lora_lab.training.step import NotFiniteError

if TYPE_CHECKING:
    from lora_lab.training.worker import Worker


def fail(worker: Worker, error: Exception) -> None:
    """Save what can be saved of a run, and tell its Snapshot why it failed.

    Args:
        worker: whose work has ended with it.
        error: as caught.
    """
    run, model, adapter = worker.run, worker.model, worker.adapter
    error = lost_adapter.reason(model, adapter, error, worker.held, worker.base)
    failure = explain(error, run.training)
    run.error = showable(error)
    worker.fit = None
    model.zero_grad(set_to_none=True)
    gc.collect()
    device_memory.empty_caches(model)
    if is_out_of_memory(error):
        worker.enter("looking for a batch size that fits")
        fitting = device_memory.largest_fitting(model, worker.forecast, run.training)
        failure = with_proposal(failure, run.training, fitting)
    run.curve = worker.losses.curve()
    kept = ""
    if (back := worker.last_good.fell_back_to) is not None:
        worker.step, kept = back, f"the adapter is as it was after step {back}"
    with contextlib.suppress(RunError):  # the disk may be what failed; the first error counts
        by_numbers = isinstance(error, (NotFiniteError, DivergingError))
        lost = isinstance(error, lost_adapter.LostAdapterError)
        if by_numbers or (lost and lost_adapter.can_be_written(model, adapter)):
            with worker.held.own_dtypes() if worker.held else contextlib.nullcontext():
                if isinstance(error, DivergingError) or getattr(error, "adapter_suspect", False):
                    worker.step = worker.last_good.restore()
                kept = f"the adapter is as it was after step {worker.step}"
                # Gone on with, it would come to the same: its numbers are a function of its seed.
                worker.save_end("failed", problem=failure.message, repeats=by_numbers)
        else:
            end = {"state": "failed", "steps": worker.step, "problem": failure.message}
            run.store.write_summary({**end, "metrics": worker.metrics})
    remedy = "; ".join(filter(None, (kept, failure.remedy)))
    run.publish(failure=replace(failure, remedy=remedy), eta_seconds=None)
