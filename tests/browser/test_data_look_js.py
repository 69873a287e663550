"""The data before the first step, in Chromium: bars, the first example, findings as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

LOOK: dict[str, Any] = {
    "lines": ["e2e: 1,000 training, 100 validation", "tokens an example: 50 % up to 60"],
    "bars": [
        {"start": 34, "end": 80, "examples": 900, "over": False},
        {"start": 81, "end": 127, "examples": 90, "over": False},
        {"start": 128, "end": 174, "examples": 10, "over": True},
    ],
    "first": [["name[A]\n", False], ["A", True], [" is <b>here</b>.", True], ["</s>", True]],
    "more": False,
    "findings": [
        ["error", "3 of 1,000 training answers are empty (rows 1, 2, 3); fill them in"],
        ["warning", "10 of 1,000 training examples are longer than max_length=128, and are cut"],
        ["note", "5 of 1,000 training answers begin or end with white space"],
    ],
}
STATE = {"look": {}, "seen": "", "busy": "", "problem": None}


def test_what_was_found_is_shown_as_text(esm_page: Make) -> None:
    esm = esm_page("data_look", STATE)
    view = esm.view()
    expect(view.get_by_role("region", name="the first example")).to_be_hidden()
    expect(view.get_by_role("status")).to_have_text("looked at when nothing trains")
    esm.set(busy="looking at the data…")
    expect(view.get_by_role("status")).to_have_text("looking at the data…")
    esm.set(busy="", look=LOOK)
    expect(view.get_by_role("status")).to_have_text("before the first step")
    expect(view.get_by_role("region", name="the first example")).to_have_text(
        "name[A]\nA is <b>here</b>.</s>"
    )
    assert view.locator("mark").all_text_contents() == ["A", " is <b>here</b>.", "</s>"]
    expect(view.get_by_text("what is learned is marked")).to_be_visible()
    esm.set(look={**LOOK, "first": [["a text", False], [" with a class", False]]})
    expect(view.get_by_text("its class or number is learned")).to_be_visible()
    esm.set(look=LOOK)
    bars = view.get_by_role("list", name="examples by tokens").get_by_role("listitem")
    assert bars.all_text_contents() == ["34–80900", "81–12790", "128–17410 over"]
    widths = [bar.locator("i").bounding_box()["width"] for bar in bars.all()]
    assert widths[0] == pytest.approx(10 * widths[1], rel=0.02)
    findings = view.locator(".ll-look-findings li")
    assert [
        mark.get_attribute("aria-label") for mark in findings.locator(".ll-look-mark").all()
    ] == [
        "error",
        "warning",
        "note",
    ]
    expect(findings.first).to_contain_text("3 of 1,000 training answers are empty")
    esm.set(look={**LOOK, "findings": []})
    expect(view.locator(".ll-look-findings")).to_have_text("nothing to fix was found")


def test_what_cannot_be_looked_at_is_told(esm_page: Make) -> None:
    problem = {"message": "no row can be read", "remedy": "mend it", "details": ""}
    esm = esm_page("data_look", {**STATE, "problem": problem})
    expect(esm.view().get_by_role("alert")).to_contain_text("no row can be read")
    expect(esm.view().locator(".ll-look-columns")).to_be_hidden()


@pytest.mark.parametrize("width", [380, 1100])
def test_it_fits_its_place(esm_page: Make, width: int) -> None:
    esm = esm_page("data_look", {**STATE, "look": LOOK})
    esm.page.set_viewport_size({"width": width, "height": 700})
    view = esm.view()
    box = view.locator(".ll-look").bounding_box()
    for place in view.locator(".ll-look-columns > div, .ll-look-findings li").all():
        inner = place.bounding_box()
        assert box["x"] <= inner["x"]
        assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 0.5
    tops = [place.bounding_box()["y"] for place in view.locator(".ll-look-columns > div").all()]
    assert (tops[0] == tops[1]) == (width > 600)
