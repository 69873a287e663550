"""What Savings say of a run: of its own batches, and of a head that it trains besides."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lora_lab._util import format as words
from lora_lab.anatomy import Anatomy, anatomy
from lora_lab.budget import budget, evaluate_price, price_table
from lora_lab.budget.table import beside_head
from lora_lab.configs import LoraConfig
from lora_lab.methods.lora.targets import ranks
from lora_lab.models import model_config
from lora_lab.models.classifier import with_head_for
from lora_lab_widgets.savings import Savings
from tests.browser.esm import EsmPage
from tests.browser.test_savings_js import (  # noqa: F401 - fixtures
    Q_V,
    Maker,
    expected,
    measured,
    paint,
    price,
    random_ranks,
    savings,
    shown,
    smollm2,
)

pytestmark = pytest.mark.browser

LENGTHS = {"most": "128 tokens, the longest example", "drawn": "61 tokens, the longest of 16 drawn"}


def test_a_run_whose_batches_are_short_is_not_far_off(
    savings: Maker,  # noqa: F811
    smollm2: Anatomy,  # noqa: F811
) -> None:
    """The longest possible batch, and the expected one: what is measured meets the second."""
    most = budget(smollm2, Q_V).adapted.total
    reading = measured(int(0.6 * most))
    page = savings({"lengths": {**LENGTHS, "share": 0.6}, "run_ranks": ranks(smollm2, Q_V)})
    line, spoken = page.view().locator(".ll-savings-line"), page.view().get_by_role("status")
    assert line.inner_text() == (
        f"at most {words.format_bytes(most)} (longest batch: 128 tokens, the longest example); "
        f"expected {words.format_bytes(round(0.6 * most))} (61 tokens, the longest of 16 drawn)"
    )
    page.set(measured=reading)
    assert measured_row(page).inner_text().endswith("✓ 0 %")
    assert spoken.inner_text() == "", "a forecast changes with each stroke, and is not read out"
    page.set(lengths={**LENGTHS, "drawn": "", "share": 1}, difference="most in the activations")
    assert line.inner_text() == spoken.inner_text() == "most in the activations"
    page.set(difference="")
    assert measured_row(page).inner_text().endswith("−40 %")
    assert "expected" not in line.inner_text()


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(use_dora=True, use_lorafa=True)])
def test_a_head_is_counted_beside_any_ranks(esm_page: Maker, lora: LoraConfig) -> None:
    """It starts at random, so a run on a task of classes trains it whatever is painted."""
    config = with_head_for("minilm-l6", model_config("minilm-l6"), {"labels": ["a", "b", "c"]})
    model = anatomy(config)
    table = beside_head(price_table(model, lora=lora), model)
    rng = random.Random(5)
    page = esm_page(Savings(price=table, bench="b1"))
    for _ in range(5):
        painted = random_ranks(model, rng)
        paint(page, painted)
        assert shown(page) == expected(evaluate_price(table, painted))
    told = page.view().locator(".ll-savings-big [title]").first.get_attribute("title")
    assert f"{384 * 3 + 3:,} are the head's" in str(told)
    paint(page, {})
    assert shown(page)["trainable"] == 0, "a head alone is no plan"


def measured_row(page: EsmPage) -> Any:
    return page.view().locator(".ll-savings-row", has_text="measured peak")
