"""Losses as they go to the browser: few points, each with the mean of all before it."""

from __future__ import annotations

import numpy as np
import pytest

from lora_lab_widgets.serialize import MAX_POINTS, thin


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
