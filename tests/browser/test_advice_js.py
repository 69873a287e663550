"""The advice in Chromium: a table with its sources, a grid of gradient norms, messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

FORM = {"open": True, "memory": "", "parameters": ""}
ADVICE: dict[str, Any] = {
    "rows": [
        ["method", "LoRA", "with 100 examples <b>it</b> has 63.8 %", "Hu et al., 2022, table 16"],
        ["rank r", "8", "2 bits a parameter", "heuristic; Schulman, 2025"],
    ],
    "notes": ["activations are an estimate"],
    "of": "mini-e2e",
    "fits": True,
}
LAYERS: dict[str, Any] = {
    "rows": ["0", "1"],
    "roles": ["q", "v"],
    "cells": [[0, 0, 0.5, 0.12, 6, 8], [0, 1, 1.0, 0.24, 12, 8], [1, 0, 0.0, 0.0, 0, 8]],
    "line": "4 backward passes in 0.3 s",
    "notes": ["heuristic: train both"],
    "of": "mini-e2e",
}
STATE = {
    "form": FORM, "advice": {}, "layers": {}, "busy": "", "painted": "", "problem": None,
}  # fmt: skip


def test_closed_until_it_is_opened(esm_page: Make) -> None:
    esm = esm_page("advice", {**STATE, "form": {**FORM, "open": False}})
    view = esm.view()
    expect(view.get_by_role("button", name="Which layers?")).to_be_hidden()
    view.get_by_role("button", name="Open the advice").click()
    assert esm.sent() == [{"type": "open", "value": True}]


def test_each_setting_has_its_source(esm_page: Make) -> None:
    esm = esm_page("advice", {**STATE, "busy": "looking at the model…"})
    view = esm.view()
    expect(view.get_by_role("status")).to_have_text("looking at the model…")
    fill = view.get_by_role("button", name="Fill the form and the grid")
    expect(fill).to_be_disabled()
    esm.set(busy="", advice=ADVICE)
    rows = view.get_by_role("region", name="what is advised").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("<b>it</b>")
    expect(rows.nth(1)).to_contain_text("heuristic; Schulman")
    expect(view.get_by_role("status")).to_have_text("for mini-e2e")
    fill.click()
    view.get_by_label("memory").fill("16 GB")
    view.get_by_label("memory").blur()
    assert esm.sent() == [{"type": "fill"}, {"type": "set", "memory": "16 GB"}]


def test_norms_are_painted_and_plans_are_taken(esm_page: Make) -> None:
    esm = esm_page("advice", {**STATE, "advice": ADVICE})
    view = esm.view()
    view.get_by_label("parameters").fill("5000")
    view.get_by_role("button", name="Which layers?").click()
    expect(view.get_by_role("button", name="Cancel")).to_be_hidden()
    esm.set(busy="probing: backward pass 1 of 4")
    view.get_by_role("button", name="Cancel").click()
    esm.set(busy="", layers=LAYERS)
    cells = view.locator(".ll-gradients tbody td")
    assert cells.all_text_contents() == ["6 (8)", "12 (8)", "0 (8)", "–"]
    background = "node => getComputedStyle(node).backgroundColor"
    assert cells.nth(1).evaluate(background) == "rgb(253, 231, 37)"
    assert cells.nth(2).evaluate(background) == "rgb(68, 1, 84)"
    assert cells.nth(1).get_attribute("title") == "0 · v: gradient norm 0.24, r 12 (uniform 8)"
    view.get_by_role("button", name="Paint the proposed ranks").click()
    view.get_by_role("button", name="Paint the uniform ones").click()
    assert esm.sent() == [
        {"type": "probe", "parameters": "5000"},
        {"type": "cancel"},
        {"type": "paint", "plan": "proposed"},
        {"type": "paint", "plan": "uniform"},
    ]
    esm.set(painted="uniform")
    pressed = view.get_by_role("button", name="Paint the uniform ones")
    expect(pressed).to_have_attribute("aria-pressed", "true")


def test_what_went_wrong_is_told(esm_page: Make) -> None:
    problem = {"message": "run 7 is running", "remedy": "stop it", "details": ""}
    esm = esm_page("advice", {**STATE, "problem": problem})
    expect(esm.view().get_by_role("alert")).to_contain_text("run 7 is running")


@pytest.mark.parametrize("width", [380, 1100])
def test_it_fits_its_place(esm_page: Make, width: int) -> None:
    esm = esm_page("advice", {**STATE, "advice": ADVICE, "layers": LAYERS})
    esm.page.set_viewport_size({"width": width, "height": 900})
    assert esm.page.evaluate("document.documentElement.scrollWidth") <= width
