"""What the Savings panel says of a run's own batches, beside the longest that there can be."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab._util import format as words
from lora_lab.anatomy import Anatomy
from lora_lab.budget import budget
from lora_lab.methods.lora.targets import ranks
from tests.browser.esm import EsmPage
from tests.browser.test_savings_js import (  # noqa: F401 - fixtures
    Q_V,
    Maker,
    measured,
    price,
    savings,
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


def measured_row(page: EsmPage) -> Any:
    return page.view().locator(".ll-savings-row", has_text="measured peak")
