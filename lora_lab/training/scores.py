"""What a run's held-out examples say of the base model before it, and of the adapter after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from lora_lab.errors import RunError
from lora_lab.methods.attached import bare
from lora_lab.runs.samples import Sample
from lora_lab.tasks.intervals import Interval
from lora_lab.tasks.metrics import RISE
from lora_lab.training import processes
from lora_lab.training.base_state import base_state
from lora_lab.training.step import NotFiniteError

if TYPE_CHECKING:
    from lora_lab.training.data import RunData
    from lora_lab.training.worker import Worker


@dataclass(frozen=True)
class _BaseScore:
    """What a base model's evaluation came to.

    Attributes:
        of: all that it hangs on.
        scores, intervals, samples, decoding: the evaluation's.
        kept: the text that the base wrote, and what it costs it; see `Kept.state`.
        seconds: that scoring took.
    """

    of: Any
    scores: dict[str, float]
    intervals: dict[str, Interval]
    samples: tuple[Sample, ...]
    decoding: dict[str, Any]
    kept: dict[str, Any]
    seconds: float


# A model's latest. In this process only: a file would have to be trusted for what it says.
_KNOWN: WeakKeyDictionary[nn.Module, _BaseScore] = WeakKeyDictionary()


def score_base(worker: Worker) -> None:
    """Score the model without the adapter; the metrics are "…_before".

    The next run on the same examples, such as a sweep's next cell, has it from this one, if each
    bit of the base and all else that it hangs on is as it was; see `base_state`.

    Raises:
        RunError: its loss is no number: training would have nothing to start from.
    """
    phase = "evaluating the base model"
    worker.enter(phase)
    with bare(worker.model):
        of = _of_base(worker)
        found = _KNOWN.get(worker.model)
        if found is None or of is None or found.of != of:
            found = _evaluated(worker, of, telling(worker, phase))
    if found is None:
        return
    # What could not write is tried again by the next run, which says so too.
    if of is not None and of[1][1] == worker.kept.what():
        _KNOWN[worker.model] = found
    worker.data.samples, worker.data.decoding = found.samples, found.decoding
    worker.kept.load_state(found.kept)
    worker.scoring_seconds = found.seconds
    _publish(worker, "before", found.scores, found.intervals)


def _of_base(worker: Worker) -> Any:
    """Return all that the base's scores hang on, to be compared; None: they cannot be kept."""
    state = base_state(worker.model) if processes.count() == 1 else None
    if state is None:
        return None
    task = worker.run.task
    scored = worker.data.what_is_scored(), worker.kept.what()
    return state, scored, task.metrics, type(task), type(worker.data.family)


def _evaluated(worker: Worker, of: Any, done: Callable[[float], None]) -> _BaseScore | None:
    begun = time.monotonic()
    scores = worker.data.evaluate(adapted=False, done=done)
    if scores is None:
        return None
    if not math.isfinite(scores["loss"]):
        raise RunError(
            f"the base model's own loss on the held-out examples is {scores['loss']}; load "
            'it with dtype="float32", or look for examples with an empty completion'
        )
    seconds = time.monotonic() - begun
    data, kept = worker.data, worker.kept
    what_is_kept = kept.begin(worker.enter)
    if what_is_kept is None:
        return None
    return _BaseScore(
        of,
        scores | what_is_kept,
        data.intervals | kept.intervals,
        data.samples,
        data.decoding,
        kept.state(),
        seconds + kept.seconds,
    )


def score_adapted(worker: Worker) -> None:
    """Score the model with the adapter; the metrics are "…_after".

    Raises:
        NotFiniteError: its loss is no number.
    """
    phase = "evaluating"
    worker.enter(phase)
    scores = worker.data.evaluate(adapted=True, done=telling(worker, phase))
    kept = None if scores is None else worker.kept.measure()
    if scores is not None and kept is not None:
        if not math.isfinite(scores["loss"]):
            raise NotFiniteError(f"the held-out loss is {scores['loss']} after training", True)
        worker.intervals |= {f"{name}{RISE}": pair for name, pair in worker.kept.rises.items()}
        intervals = worker.data.intervals | worker.kept.intervals
        _publish(worker, "after", scores | kept, intervals)
        worker.run.notes += stuck(worker.data)
    worker.run.publish(eta_seconds=0.0)


def stuck(data: RunData) -> list[str]:
    """Tell of a model that answers all examples alike, which some scores do not show."""
    answer, count = data.one_answer, len(data.held_out)
    if answer is None:
        return []
    return [
        f"all {count} held-out examples are answered alike ({answer[:40]!r}), and the right "
        "answers differ: the model tells nothing apart; where a score is not defined it is 0"
    ]


def telling(worker: Worker, phase: str) -> Callable[[float], None]:
    """Return what tells people how much of an evaluation is done."""
    told = 0

    def tell(share: float) -> None:
        nonlocal told
        if (percent := int(100 * share)) > told:
            told = percent
            worker.enter(f"{phase}, {percent} %")
            if worker.step and worker.scoring_seconds:
                worker.run.publish(eta_seconds=(1 - share) * worker.scoring_seconds)

    return tell


def _publish(
    worker: Worker, when: str, scores: dict[str, float], intervals: dict[str, Interval]
) -> None:
    data = worker.data
    worker.metrics |= {f"{name}_{when}": value for name, value in scores.items()}
    worker.intervals |= {f"{name}_{when}": pair for name, pair in intervals.items()}
    worker.run.samples = data.samples
    worker.run.publish(
        metrics=dict(worker.metrics),
        intervals=dict(worker.intervals),
        evaluated=(len(data.held_out), data.available),
    )
