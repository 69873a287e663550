"""Losses as they go to the browser: few points, each with the mean of all before it."""

from __future__ import annotations

import numpy as np
import pytest

from lora_lab.configs import TrainingConfig
from lora_lab.training.schedule import rate_factor, schedule_points
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.serialize import MAX_POINTS, describe, held_out, thin


@pytest.mark.parametrize(("count", "total"), [(1, 1), (7, 1000), (201, 201), (40_000, 60_000)])
def test_the_mean_of_many_points_is_that_of_all_of_them(count: int, total: int) -> None:
    rng = np.random.default_rng(count)
    steps = np.cumsum(rng.integers(1, 4, count)).astype(np.float64)
    losses = np.where(rng.random(count) < 0.1, np.nan, rng.normal(3, 1, count))
    points = thin(np.column_stack([steps, losses]), total)
    assert len(points) <= MAX_POINTS
    assert points[-1][0] == steps[-1]
    finite = np.isfinite(losses)
    for step, loss, mean in points[-60:]:
        measured = losses[steps == step]
        assert loss == (pytest.approx(measured, rel=1e-5) if np.isfinite(measured) else None)
        weights = np.exp(-(step - steps) / max(2, total / 60))[finite & (steps <= step)]
        expected = weights @ losses[finite & (steps <= step)] / weights.sum()
        assert mean == (pytest.approx(expected, rel=1e-5) if len(weights) else None)


def test_a_loss_that_is_no_number_leaves_the_mean_alone() -> None:
    nan = float("nan")
    assert thin([], 10) == []
    assert thin([(1, nan)], 10) == [(1, None, None)]
    assert thin([(1, 2.0), (2, nan), (3, 2.0)], 10) == [(1, 2, 2), (2, None, 2), (3, 2, 2)]


def test_held_out_losses_begin_with_the_base_and_are_few() -> None:
    rows = tuple({"step": i, "loss": 1 / i, "accuracy": 50.0} for i in range(1, 1002))
    assert held_out(Snapshot("r")) == []
    seen = Snapshot("r", evaluations=rows[:2], metrics={"loss_before": 3.0}, best_step=2)
    assert describe(seen)["held_out"] == [(0, 3.0), (1, 1.0), (2, 0.5)]
    assert describe(seen)["best_step"] == 2
    told = {"label": "held-out loss", "before": 3.0}
    assert describe(seen)["metrics"] == [{**told, "after": None, "now": 0.5}]
    ended = Snapshot("r", evaluations=rows[:2], metrics={"loss_before": 3.0, "loss_after": 0.4})
    assert describe(ended)["metrics"] == [{**told, "after": 0.4}]
    many = held_out(Snapshot("r", evaluations=rows))
    assert len(many) <= MAX_POINTS
    assert many[-1] == (1001, pytest.approx(1 / 1001, rel=1e-5))


@pytest.mark.parametrize("steps", [1, 2, 59, 60, 61, 1000, 100_003])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_a_schedules_points_are_its_rates_from_the_first_step_to_the_last(steps, kind) -> None:
    training = TrainingConfig(max_steps=steps, lr_scheduler_type=kind, warmup_steps=0.1)
    points = schedule_points(training)
    assert len(points) <= 62
    assert points[0][0] == 1
    assert points[-1][0] == steps
    for step, share in points:
        assert share == rate_factor(step - 1, kind=kind, warmup=training.warmup, steps=steps)
    if kind != "constant" and steps > 1:
        assert max(share for _, share in points) == 1.0, "the peak is among them"
