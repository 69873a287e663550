"""The front is PEFT's own, whatever is against what; each number of examples has its own."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.analysis.pareto import front_of, pareto_points
from lora_lab.captions import pareto_summary
from lora_lab.errors import ConfigError
from lora_lab.paper import table
from tests.core.analysis.test_choices import choices, row
from tests.helpers.laboratory_fakes import method_comparison
from tests.helpers.peft_processing import compute_pareto_frontier

NUMBERS = st.integers(0, 6).map(float)


def theirs(points, higher):
    frame = pd.DataFrame(points, columns=["cost", "score"])
    read = {"cost": "lower", "score": "higher" if higher else "lower"}
    return list(compute_pareto_frontier(frame, "cost", "score", read).index)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), st.booleans())
def test_the_front_is_the_one_that_pefts_comparison_draws(points, higher):
    assert front_of(points, higher) == theirs(points, higher)


@pytest.mark.parametrize("cost", ["forgetting", "parameters", "seconds", "peak memory, GiB"])
def test_of_pefts_own_runs_too(cost):
    found = table(1, "PEFT")
    points = list(zip(found.column(cost), found.column("accuracy"), strict=True))
    assert front_of(points, True) == theirs(points, True)


@pytest.mark.parametrize("against", ["parameters", "seconds", "memory"])
def test_a_row_stands_at_what_it_cost(against):
    data = method_comparison()
    points = pareto_points(data, against)
    name = {"parameters": "trainable", "memory": "peak_memory"}.get(against, against)
    assert [point.x for point in points] == [getattr(own, name) for own in data.rows]
    own = [(point.x, point.row.mean) for point in points]
    front = [number for number, point in enumerate(points) if point.on_front]
    assert front == theirs(own, higher=False)


def test_what_was_kept_is_a_cost_with_a_spread():
    first = dataclasses.replace(row("LoRA", (0.8, 0.9)), kept=(2.0, 2.2))
    second = dataclasses.replace(row("FT", (0.7, 0.9)), kept=(2.5, 2.9))
    lora, full = pareto_points(choices(first, second), "kept")
    assert (lora.x, full.x) == pytest.approx((2.1, 2.7))
    assert (lora.x_spread, full.x_spread) == pytest.approx((0.1 * 2**0.5, 0.2 * 2**0.5))
    assert (lora.on_front, full.on_front) == (True, False)
    assert "kept loss" in choices(first, second).to_table().header
    assert "kept loss" not in choices(row()).to_table().header


def test_each_number_of_training_examples_has_a_front_of_its_own():
    own = dataclasses.replace
    small = own(row("LoRA", (0.5, 0.6), examples=10), trainable=100)
    large = own(row("LoRA", (0.8, 0.9), examples=100), trainable=100)
    found = pareto_points(choices(small, large))
    assert [point.on_front for point in found] == [True, True]
    beaten = own(row("FT", (0.7, 0.7), examples=100), trainable=1000)
    found = pareto_points(choices(small, large, beaten))
    assert [point.on_front for point in found] == [True, True, False]
    said = pareto_summary(choices(small, large, beaten))
    assert "Beaten on both by another one: FT." in said
    assert said.startswith("On the front of accuracy against trainable parameters are LoRA")


def test_what_nobody_noted_and_what_is_none_is_one_line():
    with pytest.raises(ConfigError, match="no run of this comparison has noted 'seconds'"):
        pareto_points(choices(row()), "seconds")
    with pytest.raises(ConfigError, match="use one of parameters, seconds, memory, kept"):
        pareto_points(choices(row()), "money")  # type: ignore[arg-type]
    noted = dataclasses.replace(row("FT"), seconds=3.0)
    assert "1 row left out: not noted there" in pareto_summary(choices(row(), noted), "seconds")
