"""Learning rates step by step, as transformers' schedules of the same names have them."""

from __future__ import annotations

import functools
import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from lora_lab.runs.training_config import TrainingConfig


def scheduler_of(optimizer: torch.optim.Optimizer, training: TrainingConfig) -> LambdaLR:
    """Return what sets the rates of an optimizer's groups, that of the first step at once."""
    kind, steps = training.lr_scheduler_type, training.max_steps
    return LambdaLR(
        optimizer, functools.partial(rate_factor, kind=kind, warmup=training.warmup, steps=steps)
    )


def schedule_points(training: TrainingConfig, most: int = 60) -> list[tuple[int, float]]:
    """Return (step, share of the peak rate) of some steps, to be drawn.

    Args:
        training: whose steps are known.
        most: points, evenly spread; the end of the warm-up is among them.
    """
    last = training.max_steps
    every = max(1, -(-last // most))
    steps = sorted({*range(0, last, every), min(training.warmup, last - 1), last - 1})
    kind, warmup = training.lr_scheduler_type, training.warmup
    shares = (rate_factor(step, kind=kind, warmup=warmup, steps=last) for step in steps)
    return [(step + 1, share) for step, share in zip(steps, shares, strict=True)]


def rate_factor(step: int, *, kind: str, warmup: int, steps: int) -> float:
    """Return what the peak rate is multiplied with after `step` of `steps` optimizer steps.

    "constant" has no warm-up, in transformers neither.
    """
    if kind == "constant":
        return 1.0
    if step < warmup:
        return step / max(1, warmup)
    if kind == "linear":
        return max(0.0, (steps - step) / max(1, steps - warmup))
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
