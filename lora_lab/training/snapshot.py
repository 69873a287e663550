"""What a run looks like at one moment: immutable, small, safe to read from any thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from lora_lab.budget.reading import MemoryReading
from lora_lab.spectra.update import SiteUpdate
from lora_lab.tasks.intervals import Interval
from lora_lab.tasks.metrics import NATS


class RunState(StrEnum):
    """The states of a run; `done` and `failed` are final."""

    IDLE = "idle"
    QUEUED = "queued"  # starts by itself when the runs before it are over
    RUNNING = "running"
    PAUSING = "pausing"  # asked for; takes effect at the next optimizer step
    PAUSED = "paused"
    STOPPING = "stopping"  # asked for; takes effect at the next optimizer step
    DONE = "done"  # trained to the end, or stopped on request
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self in (RunState.DONE, RunState.FAILED)


@dataclass(frozen=True)
class Failure:
    """An error as people should read it: what happened, and what to try."""

    message: str  # one line
    remedy: str  # one line, "" when none is known
    details: str = ""  # the traceback as text
    # Fields of `TrainingConfig` with values that would have worked, as far as can be said.
    proposal: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Spectra:
    """Singular values of ΔW at every site of the adapter, at one step."""

    step: int
    singular_values: Mapping[str, np.ndarray]  # site name -> (m,) float32, descending


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. The trainer's thread replaces it whole; readers never lock."""

    run_id: str
    state: RunState = RunState.IDLE
    phase: str = ""  # "queued behind run …", "evaluating the base model", "training", "saving" …
    step: int = 0
    skipped_steps: int = 0  # of them, in which float16 overflowed and nothing moved
    total_steps: int = 0
    loss: float | None = None  # of the latest optimizer step
    loss_unit: str = NATS
    losses: tuple[tuple[int, float], ...] = ()  # (step, loss), at most 500 points
    # Held-out scores while it trains: {"step": …, "loss": …, and the task's metrics}.
    evaluations: tuple[Mapping[str, float], ...] = ()
    best_step: int | None = None  # of the best of them
    stopped_early: bool = False  # evaluations were no better for long enough
    learning_rate: float | None = None
    steps_per_second: float | None = None
    elapsed_seconds: float = 0.0  # trained time, pauses left out
    eta_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)  # "bleu_before", "bleu_after" …
    intervals: Mapping[str, Interval] = field(default_factory=dict)  # of metrics, of 95 %
    evaluated: tuple[int, int] | None = None  # held-out examples scored, of how many there are
    memory: MemoryReading | None = None
    padding: float | None = None  # the share of padding in the batches so far, from 0 to 1
    spectra: Spectra | None = None
    factors: SiteUpdate | None = None  # a copy in NumPy, of the site named by `Run.watch`
    ranks: Mapping[str, int] | None = None  # site name -> rank, where training moves it (AdaLoRA)
    failure: Failure | None = None
    version: int = 0  # grows with every replacement
