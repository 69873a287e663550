"""The Savings panel's Python side: traits, fallback, and the same numbers as the budget."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora_lab.anatomy import Anatomy, anatomy
from lora_lab.budget import budget, price_table
from lora_lab.configs import LoraConfig
from lora_lab.models import model_config
from lora_lab.plan import ranks
from lora_lab_widgets.savings import Savings

Q_V = LoraConfig(r=8, target_modules=["q", "v"])


@pytest.fixture(scope="module")
def model() -> Anatomy:
    return anatomy(model_config("smollm2-135m"))


def panel(model: Anatomy, **state: Any) -> Savings:
    return Savings(price=price_table(model), ranks=ranks(model, Q_V), bench="b1", **state)


def test_budget_is_the_cores(model: Anatomy) -> None:
    assert panel(model).budget == budget(model, Q_V)


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
    assert "<table>" in text
    assert "0.46 M of 134.5 M" in text


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(TypeError, match="did you mean 'ranks'"):
        Savings(rank={})
