"""Whether a run could have learned: what a finished one is told where it could not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lora_lab.methods.base import Adapter
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training import processes

if TYPE_CHECKING:
    from lora_lab.training.worker import Worker

_AT_CHANCE = 0.97  # of what guessing costs; 60 % right of two classes cost less
_SAME = 1e-6  # of a loss: what float32 rounds anyway
_ENOUGH = 20  # losses whose noise is known
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def checksum(adapter: Adapter) -> int:
    """Return the sum of all bits that an adapter trains, read as whole numbers.

    One that moves changes it.
    """
    total = 0
    for parameter in adapter.parameters():
        bits = parameter.detach().contiguous().view(_BITS[parameter.element_size()])
        total += int(bits.sum(dtype=torch.int64))
    return total


def learned_notes(worker: Worker, moved: bool) -> list[str]:
    """Return what kept a run that took all of its steps from learning; [] where nothing did.

    Every process has to ask: whether they all have one adapter yet is looked at too.

    Args:
        worker: that took them.
        moved: whether any trained number is another one than before the first step.
    """
    return [*_apart(worker), *_not_learned(worker, moved)]


def _apart(worker: Worker) -> list[str]:
    if processes.count() == 1 or processes.alike(checksum(worker.adapter)):
        return []
    return [
        "the adapters of the processes have come apart, and the first one's is saved: launch them "
        "on GPUs of one kind, with one version of torch"
    ]


def _not_learned(worker: Worker, moved: bool) -> list[str]:
    training, values = worker.run.training, worker.losses.values
    chance = worker.data.family.chance
    if causes := _causes(training, moved):
        return causes
    before, after = worker.metrics.get("loss_before"), worker.metrics.get("loss_after")
    if before is not None and after is not None and abs(after - before) <= _SAME * abs(before):
        return [
            f"the held-out loss is {before:.6g} before and after: what was trained changes nothing "
            f"that can be measured; a higher learning_rate than {training.learning_rate:g}?"
        ]
    few = max(1, len(values) // 10)
    ends = min(statistics.fmean(values[-few:]), math.inf if after is None else after)
    starts = statistics.fmean(values[:few]) if before is None else before
    near = ends <= chance / _AT_CHANCE if chance else False  # far above it a loss may be falling
    if chance and ends >= _AT_CHANCE * chance and (near or ends >= _AT_CHANCE * starts):
        return [
            f"the loss ended at {ends:.3g}, no better than chance (guessing has {chance:.3g}): "
            "take more steps or another learning_rate, and look whether the answers follow from "
            "what is read"
        ]
    return _no_fall(values, before, after)


def _causes(training: TrainingConfig, moved: bool) -> list[str]:
    steps, warmup, rate = training.max_steps, training.warmup, training.learning_rate
    fix = f"set warmup_steps (it is {training.warmup_steps}) to 0 or a share, or take more steps"
    if steps == 1 <= warmup:
        return [f"nothing was learned: the warm-up begins at the learning rate 0, and ended; {fix}"]
    if steps <= warmup:
        reached = rate * (steps - 1) / warmup
        return [
            f"the warm-up is as long as the run or longer: after {steps} steps the learning rate "
            f"has come to {reached:.3g} of {rate:g}; {fix}"
        ]
    if not moved:
        return [
            f"no trained number has moved: learning_rate={rate:g} is lost in the rounding of their "
            "dtype; use a higher one, or load the model with dtype='float32'"
        ]
    return []


def _no_fall(values: Sequence[float], before: float | None, after: float | None) -> list[str]:
    third = len(values) // 3
    if len(values) < _ENOUGH or (before is not None and after is not None and after < before):
        return []
    first, last = values[:third], values[-third:]
    noise = math.sqrt((statistics.variance(first) + statistics.variance(last)) / third)
    start, end = statistics.fmean(first), statistics.fmean(last)
    if start - end > 2 * noise:
        return []
    return [
        f"the loss did not fall beyond its noise: {start:.3g} in the first third of the steps, "
        f"{end:.3g} in the last, ± {noise:.2g}"
    ]
