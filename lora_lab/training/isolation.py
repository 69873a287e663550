"""What a training shares with the notebook, and how the two keep out of each other's way.

Gradient mode and current device belong to a thread; the log handlers belong to the whole process.
So do torch's random numbers and a module's `training` flag: a run has its own, see `own_random` and
`own_modes`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

import torch
from torch import nn

from lora_lab._util.hardware import hardware
from lora_lab._util.own_gradients import OwnGradients
from lora_lab._util.quiet import log_filter
from lora_lab.methods.api import unmerge
from lora_lab.methods.attached import activate, active, attached
from lora_lab.methods.base import Adapter
from lora_lab.methods.offload import check_trained
from lora_lab.methods.own_modes import OwnModes
from lora_lab.redaction import redacted
from lora_lab.training import processes
from lora_lab.training.held import Held
from lora_lab.training.lost_adapter import check_dtypes, check_owned, check_standing

ADAPTER = "default"  # the name under which a run attaches its adapter
_MOST_NOTES = 100
_SHARED_MODES = (
    "the model is compiled, or on several GPUs at once (DataParallel): model.eval(), "
    "model.train() and zero_grad() in a cell are the run's too, and its modes the cell's; ask "
    "the model within `with run.paused() as model:`"
)


class ModelState:
    """How a model stood when the run came to rest, to be put back after somebody had it.

    Whoever has it finds it in the run's modes.
    """

    def __init__(self, model: nn.Module, modes: OwnModes, held: Held | None = None) -> None:
        self._model, self._held = model, held
        self._active = active(model)
        self._learns = [(p, p.requires_grad) for p in model.parameters()]
        self._modes, self._lent = modes, modes.lend()

    def restore(self, adapter: Adapter) -> None:
        """Put back modes, the active adapter, and what learns; drop gradients, unmerge.

        Raises:
            LostAdapterError: the run's adapter is no longer on the model, or not where it was; or
                the model was cast.
            AdapterError: what it learns is no part of the model.
        """
        self._modes.take_back(self._lent)
        if attached(self._model).get(ADAPTER) is not adapter:
            check_owned(self._model, adapter, when="was paused")
        unmerge(self._model)
        check_standing(self._model, adapter, parameters=False)  # who offloads changes these
        if self._active == adapter.name:  # while the base is scored, new biases are out of it
            check_trained(self._model, adapter)  # of a merged one nothing is in the model
        check_dtypes(self._held, when="was paused")
        activate(self._model, self._active)
        for parameter, learns in self._learns:
            parameter.requires_grad_(learns)
        self._model.zero_grad(set_to_none=True)


def own_gradients(run_id: str, modes: OwnModes) -> OwnGradients:
    """Return what keeps cells' backward passes out of a run's gradients; DDP looks after its own.

    Args:
        run_id: of the run, for errors.
        modes: the run's, which tell its thread from others.
    """
    mine = modes.are_here if processes.count() == 1 else None
    return OwnGradients(mine, f"run {run_id}", hidden=not modes.shared)


def modes_notes(modes: OwnModes) -> list[str]:
    """Return what to say where the run and other cells have one set of modes."""
    return [_SHARED_MODES] if modes.shared else []


@contextlib.contextmanager
def thread_settings(device: torch.device) -> Iterator[None]:
    """Set what torch keeps per thread: gradients on, no inference mode, the model's device."""
    with torch.inference_mode(False), torch.enable_grad(), hardware(device).current():
        yield


@contextlib.contextmanager
def diverted_log(notes: list[str]) -> Iterator[None]:
    """Put this thread's log lines into `notes` instead of into whatever cell runs now."""
    mine = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        if record.thread != mine:
            return True
        line = redacted(f"{record.name}: {record.getMessage()}")
        if line not in notes and len(notes) < _MOST_NOTES:
            notes.append(line)
        return False

    with log_filter(passes):
        yield
