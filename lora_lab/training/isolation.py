"""What a training shares with the notebook, and how the two keep out of each other's way.

Gradient mode and current device belong to a thread; random state, a module's `training` flag and
the log handlers belong to the whole process.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lora_lab.errors import RunError
from lora_lab.methods.api import unmerge
from lora_lab.methods.attached import activate, active, attached
from lora_lab.methods.base import Adapter
from lora_lab.runs.redaction import redacted

ADAPTER = "default"  # the name under which a run attaches its adapter
_MOST_NOTES = 100


class ModelState:
    """How a model stood when the run came to rest, to be put back after somebody had it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._active = active(model)
        self._modes = [(module, module.training) for module in model.modules()]
        self._random = random_state(device)

    def restore(self, adapter: Adapter) -> None:
        """Put back modes, gradients, random state and the active adapter; unmerge.

        Raises:
            RunError: the run's adapter is no longer on the model.
        """
        if attached(self._model).get(ADAPTER) is not adapter:
            raise RunError(
                f"the adapter {ADAPTER!r} was detached or replaced while the run was paused, so it "
                "cannot go on; start a new run"
            )
        unmerge(self._model)
        activate(self._model, self._active)
        for module, mode in self._modes:
            module.training = mode
        self._model.zero_grad(set_to_none=True)
        set_random_state(self._random, self._device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return torch's random state on the CPU and on `device`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def whole_random_state(device: torch.device) -> dict[str, Any]:
    """Return torch's, NumPy's and Python's random state as tensors, numbers and tuples of them."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    numpy = (str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest)
    return {**random_state(device), "numpy": numpy, "python": random.getstate()}


def set_whole_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `whole_random_state` returned; a device it does not know of stays as it is."""
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    known = {"cpu", device.type}
    set_random_state({name: state[name] for name in known if name in state}, device)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw CPU random numbers from `seed` in the block, and leave the caller's sequence alone."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


@contextlib.contextmanager
def thread_settings(device: torch.device) -> Iterator[None]:
    """Set what torch keeps per thread: gradients on, no inference mode, the model's device."""
    cuda = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), cuda:
        yield


@contextlib.contextmanager
def diverted_log(notes: list[str]) -> Iterator[None]:
    """Put this thread's log lines into `notes` instead of into whatever cell runs now."""
    divert = _Divert(notes)
    handlers: list[Any] = [*logging.getLogger().handlers, logging.lastResort]
    for library in ("transformers", "accelerate", "datasets"):
        handlers += logging.getLogger(library).handlers
    for handler in filter(None, handlers):
        handler.addFilter(divert)
    try:
        yield
    finally:
        for handler in filter(None, handlers):
            handler.removeFilter(divert)


class _Divert(logging.Filter):
    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self._notes = notes
        self._thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread:
            return True
        line = redacted(f"{record.name}: {record.getMessage()}")
        if line not in self._notes and len(self._notes) < _MOST_NOTES:
            self._notes.append(line)
        return False


def empty_cache(device: torch.device) -> None:
    """Give freed blocks back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
