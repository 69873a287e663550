"""The loss chart at the sizes that losses come in, in Chromium."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.browser.run_panel_page import TRAINING, Make, panel

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("losses", "ticks"),
    [
        ([0.00012, 0.00006], {"6e-5", "8e-5", "1e-4", "1.2e-4"}),
        ([0.9, 0.4], {"0.4", "0.6", "0.8", "1.0"}),
        ([12000.0, 9000.0], {"9000", "10000", "11000", "12000"}),
    ],
)
def test_losses_of_any_size_are_told_whole(
    esm_page: Make, losses: list[float], ticks: set[str]
) -> None:
    points = tuple(enumerate(losses, 1))
    esm = esm_page(panel(replace(TRAINING, losses=points, evaluations=(), total_steps=2)))
    chart = esm.view().locator("svg.ll-loss")
    labels = chart.locator("text").evaluate_all("all => all.map(t => t.textContent)")
    assert ticks <= set(labels)
    assert "0.00" not in labels, "a small loss is none of zero"
    left = chart.bounding_box()["x"]
    for text in chart.locator(".ll-loss-frame text").all():
        assert text.bounding_box()["x"] >= left, "the margin has room for it"
