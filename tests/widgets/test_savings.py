"""The Savings panel's Python side: traits, fallback, and the same numbers as the budget."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_lab.anatomy import Anatomy, anatomy
from lora_lab.budget import budget, price_table
from lora_lab.budget.costs import Memory
from lora_lab.budget.evaluate import evaluate_price
from lora_lab.budget.reading import MemoryReading
from lora_lab.configs import LoraConfig
from lora_lab.methods.lora.targets import ranks
from lora_lab.models import model_config
from lora_lab_widgets.plan import PlanModel
from lora_lab_widgets.savings import Savings
from tests.helpers.tiny_run import tiny_lm, tiny_task

Q_V = LoraConfig(r=8, target_modules=["q", "v"])


@pytest.fixture(scope="module")
def model() -> Anatomy:
    return anatomy(model_config("smollm2-135m"))


def panel(model: Anatomy, **state: Any) -> Savings:
    return Savings(price=price_table(model), ranks=ranks(model, Q_V), bench="b1", **state)


def test_budget_is_the_cores(model: Anatomy) -> None:
    assert panel(model).budget == budget(model, Q_V)


@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"recompute_mlp": False}])
def test_what_every_run_recomputes_is_priced(setting: dict[str, bool]) -> None:
    plan = PlanModel(tiny_lm(), tiny_task(), Q_V, setting)
    found = evaluate_price(plan.planned.price.table, plan.ranks)
    plain = PlanModel(tiny_lm(), tiny_task(), Q_V).planned.price
    learned = max(len(example.completion) + 1 for example in tiny_task().train)  # a token a byte
    assert plain.inputs["label_length"] == learned
    assert found == budget(plan.anatomy, Q_V, **plain.inputs, **setting)
    assert found.adapted.activations != evaluate_price(plain.table, plan.ranks).adapted.activations


def test_before_a_price_there_is_nothing_to_show() -> None:
    empty = Savings()
    assert empty.budget is None
    assert repr(empty) == "<Savings no model>"
    assert "no model" in empty.fallback_html()


def test_repr_is_short_and_says_the_saving(model: Anatomy) -> None:
    shown = panel(model)
    assert repr(shown).startswith("<Savings 0.46 M of 134.5 M trainable, peak memory −")
    shown.ranks = {}
    assert repr(shown) == "<Savings no rank painted>"


def test_ranks_of_the_model_before_do_not_break_the_repr(model: Anatomy) -> None:
    shown = panel(model)
    shown.ranks = {"another.model.q_proj": 8}
    assert repr(shown) == "<Savings no rank painted>"


def test_what_goes_to_the_browser_is_json_and_small(model: Anatomy) -> None:
    state = panel(model).get_state(["price", "ranks", "bench", "measured", "settings_text"])
    assert len(json.dumps(state)) < 100_000  # 210 sites


def test_fallback_for_pages_without_widgets_is_the_table(model: Anatomy) -> None:
    text = panel(model).fallback_html()
    assert "<table" in text
    assert "0.46 M of 134.5 M" in text


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="did you mean 'ranks'"):
        Savings(rank={})


MIB = 1 << 20
PLANNED = Memory(weights=100 * MIB, gradients=2 * MIB, optimizer=4 * MIB, activations=94 * MIB)


def took(weights: int, gradients: int, optimizer: int, activations: int) -> MemoryReading:
    """Return a reading of so many MiB."""
    parts = [weights * MIB, gradients * MIB, optimizer * MIB, activations * MIB]
    return MemoryReading(120 * MIB, sum(parts), "tensor bytes on the CPU", *parts)


def test_a_dry_run_stands_for_just_its_plan(model: Anatomy) -> None:
    shown = panel(model)
    closed_form = shown.budget.adapted
    assert shown.forecast(shown.ranks) == closed_form
    shown.learn(shown.ranks, PLANNED)
    assert shown.forecast(shown.ranks) == PLANNED
    other = dict.fromkeys(shown.ranks, 4)
    assert shown.forecast(other) == budget(model, Q_V.replace(r=4)).adapted
    shown.learn(None, Memory(1, 2, 3, 4))
    assert shown.dry_run["full"] == {
        "weights": 1,
        "gradients": 2,
        "optimizer": 3,
        "activations": 4,
    }
    assert shown.forecast(shown.ranks) == PLANNED


def test_new_settings_forget_dry_runs_and_the_last_runs_plan(model: Anatomy) -> None:
    shown = panel(model)
    shown.run_ranks = dict(shown.ranks)
    shown.learn(shown.ranks, PLANNED)
    shown.measure(took(100, 2, 4, 150), settled=True)
    assert shown.difference
    shown.price = price_table(model, batch_size=2)
    assert (shown.dry_run, shown.run_ranks, shown.difference) == ({}, {}, "")
    shown.measure(took(100, 2, 4, 150), settled=True)
    assert shown.difference == "", "it was measured with other settings"


def test_a_measurement_by_category_and_the_part_that_differs(model: Anatomy) -> None:
    shown = panel(model)
    shown.run_ranks = dict(shown.ranks)
    shown.learn(shown.ranks, PLANNED)
    shown.measure(took(100, 2, 4, 98), settled=True)  # 204 MiB, 2 % above
    assert shown.measured == {
        "kind": "tensor bytes on the CPU",
        "settled": True,
        "current": 120 * MIB,
        "peak": 204 * MIB,
        "weights": 100 * MIB,
        "gradients": 2 * MIB,
        "optimizer": 4 * MIB,
        "activations": 98 * MIB,
    }
    assert shown.difference == ""
    shown.measure(took(100, 2, 4, 134), settled=True)
    assert shown.difference == (
        "measured +20 % against the forecast; most in the activations: 134 MiB where 94 MiB were "
        "expected"
    )
    shown.measure(took(60, 2, 4, 94), settled=True)
    assert shown.difference == (
        "measured −20 % against the forecast; most in the weights: 60 MiB where 100 MiB were "
        "expected"
    )
    shown.measure(MemoryReading(1, 400 * MIB, "another accelerator"), settled=True)
    assert shown.difference == "measured +100 % against the forecast"
    shown.measure(took(100, 0, 0, 0), settled=False)  # before the first step
    assert shown.difference == ""
    shown.measure(None, settled=False)
    assert shown.measured == {}
