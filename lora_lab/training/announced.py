"""A run is on the disk from the moment its `start` returns, also one that waits in the queue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_lab.errors import RunError
from lora_lab.runs import signature
from lora_lab.training import processes
from lora_lab.training.description import describe
from lora_lab.training.failures import explain, showable

if TYPE_CHECKING:
    from lora_lab.training.run import Run


def announce(run: Run, others: Iterable[Run]) -> None:
    """Write the config.json of a new run that is to be queued, so that it can be gone on with.

    Args:
        run: any; one that goes on is on the disk already.
        others: those that train or wait. Of one on the same model the base's fingerprint is taken.

    Raises:
        RunError: the disk does not take it.
    """
    if run.is_again or not processes.main():
        return
    known = next((r.store.config for r in others if r.model is run.model and r.store.config), None)
    base = known["fingerprints"]["base"] if known else None
    # Of several processes none may leave the others: what fails is told when its turn comes.
    alone = processes.count() == 1
    with contextlib.nullcontext() if alone else contextlib.suppress(RunError):
        run.store.begin()
        run.store.write_config(signature.signed(describe(run, base)))


def withdraw(run: Run) -> None:
    """Let go of the folder of a run that did not begin; that of a new one is removed."""
    if run.is_again:
        run.store.close()
    else:
        run.store.discard()


def fail(run: Run, error: Exception) -> None:
    """Keep what a run failed by before its worker could do so, for people and on the disk."""
    failure = explain(error, run.training)
    run.publish(failure=failure)
    run.error = showable(error)
    if not run.is_again and run.store.config is not None:
        end = {"state": "failed", "steps": 0, "problem": failure.message, "metrics": {}}
        with contextlib.suppress(RunError):  # the disk may be what failed; the first error counts
            run.store.write_summary(end)
