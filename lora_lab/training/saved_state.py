"""What a run writes of itself: the state that a checkpoint holds, and the summary at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_lab.errors import RunError
from lora_lab.methods.attached import require_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.finite import NotFiniteAdapterError, check_finite
from lora_lab.redaction import redacted_values
from lora_lab.training.loss_scale import skipped_notes
from lora_lab.training.resume_state import fitting
from lora_lab.training.step import NotFiniteError

if TYPE_CHECKING:
    from lora_lab.training.worker import Worker


def checkpoint_state(worker: Worker) -> dict[str, Any]:
    """Return what resuming needs, between two steps: tensors, numbers, containers of them."""
    assert worker.fit is not None
    return {
        **worker.fit.state(),
        "method": worker.adapter.training_state(),
        "adapter": {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in exact_state(worker.adapter).items()
        },
        "statistics": {**require_adapters(worker.model).statistics.values(worker.adapter.name)},
        "metrics": dict(worker.metrics),
        "intervals": {name: list(pair) for name, pair in worker.intervals.items()},
        "samples": redacted_values([sample.to_dict() for sample in worker.run.samples]),
        "seconds": worker.pace.seconds,
        "padding": worker.padding.state(),
        "evaluations": worker.evaluations.state(),
        "kept": worker.kept.state(),
        "log_bytes": worker.run.store.flush_log(),
        "spectra_step": worker.recorder.last_step,
    }


def check_numbers(model: nn.Module, adapter: Adapter) -> None:
    """Have the last good adapter put back where the latest step has left no numbers.

    Raises:
        NotFiniteError: some are NaN or infinite.
    """
    try:
        check_finite(adapter.name, adapter.state())
        check_finite(adapter.name, require_adapters(model).statistics.learned(adapter.name))
    except NotFiniteAdapterError as error:
        raise NotFiniteError(str(error), adapter_suspect=True) from None


def summary(worker: Worker, state: str, adapter_folder: Path) -> dict[str, Any]:
    """Return how a run ended, as its summary.json tells it, with what its adapter takes."""
    files = adapter_folder.rglob("*.safetensors")
    skipped, padding = worker.run.snapshot.skipped_steps, worker.padding.share
    return {
        "state": state,
        "steps": worker.step,
        **({"skipped_steps": skipped} if skipped else {}),
        "seconds": round(worker.pace.seconds, 3),
        **({} if padding is None else {"padding": round(padding, 4)}),
        "trainable": worker.adapter.trainable,
        "peak_memory": worker.meter.reading().peak,  # bytes
        "checkpoint_bytes": sum(file.stat().st_size for file in files),
        "metrics": worker.metrics,
        "intervals": worker.intervals,
        "evaluated": {"examples": len(worker.data.held_out), "of": worker.data.available},
        **worker.evaluations.summary(),
        **worker.kept.summary(),
        "scoring": worker.data.scoring,
        "decoding": worker.data.decoding,
        "notes": list(worker.run.notes),
    }


def end_notes(worker: Worker, state: str) -> list[str]:
    """Return what there is to say of a run at its end."""
    if state == "stopped" and not worker.step:
        return ["stopped before its first step: no adapter is left, for it has learned nothing"]
    notes = skipped_notes(worker.run.snapshot.skipped_steps, worker.step)
    if left := worker.adapter.pending_schedule():
        at = f"{state} at step {worker.step} of {worker.run.training.max_steps}"
        notes.append(f"{at}: {left}")
    return notes


def exact_state(adapter: Adapter) -> dict[str, Tensor]:
    """Return live tensors: an adapter's state, and what its factors started from, if from W₀."""
    state = dict(adapter.state())
    for name, site in adapter.sites.items():
        if site.initial is not None:
            state |= zip((f"{name}.A0", f"{name}.B0"), site.initial, strict=True)
    return state


def load_state(model: nn.Module, adapter: Adapter, state: Mapping[str, Any]) -> None:
    """Copy a checkpoint's tensors into an adapter, if all of them fit, and running statistics.

    Args:
        model: that the adapter is on.
        adapter: in its first state.
        state: what `checkpoint_state` returned.

    Raises:
        RunError: the checkpoint is of another adapter.
    """
    with fitting(state["step"]):
        adapter.load_training_state(state["method"])
        tensors: Mapping[str, Tensor] = state["adapter"]
        live = exact_state(adapter)
        differing = live.keys() ^ tensors.keys()
        differing |= {
            name
            for name in live.keys() & tensors
            if getattr(tensors[name], "shape", None) != live[name].shape
        }
        if differing:
            raise RunError(
                f"the checkpoint does not fit the model at {min(differing)}; resume it on the base "
                "model that it was made on"
            )
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(tensors[name])
        require_adapters(model).statistics.replace(adapter.name, state.get("statistics", {}))
