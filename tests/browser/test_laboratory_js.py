"""The laboratory's tabs and controls in Chromium: what they send, and that nothing jumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from lora_lab_widgets.laboratory import LaboratoryPanel
from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

CLOSED = {"open": False, "view": "one", "views": [], "question": "", "controls": []}
SITE = {
    "name": "site",
    "kind": "choice",
    "label": "matrix",
    "value": "b",
    "options": [["layer 0 · q", "a"], ["layer 1 · q", "b"]],
    "hint": "which matrix",
}
STEP = {
    "name": "step",
    "kind": "slider",
    "label": "step",
    "value": 2,
    "marks": ["step 0", "step 1", "step 2", "step 1000"],
    "hint": "",
}
BOX = {"name": "excess", "kind": "box", "label": "above chance", "value": False, "hint": ""}
FOLDER = {"name": "folder", "kind": "text", "label": "folder", "value": "", "hint": ""}
OPEN = {
    "open": True,
    "view": "one",
    "views": [["one", "One"], ["two", "Two"], ["three", "Three"]],
    "question": "What is it?",
    "controls": [SITE, STEP, BOX, FOLDER],
}
BUSY = {"busy": "W₀'s directions: matrix 3 of 60", "share": 0.05, "note": "", "again": False}
REST = {"busy": "", "share": 0, "note": "at step 120", "again": True}


def opened(make: Make, **options: Any) -> EsmPage:
    esm = make(LaboratoryPanel(lambda _: None), {"form": OPEN, "state": REST}, **options)
    assert esm.sent() == []
    return esm


def answer(esm: EsmPage) -> None:
    """Answer the newest message, as Python does."""
    esm.receive({"type": "seen", "seq": esm.sent()[-1]["seq"]})


def said(esm: EsmPage) -> list[dict[str, Any]]:
    """Return what was sent, without the numbers of the messages."""
    return [{k: v for k, v in message.items() if k != "seq"} for message in esm.sent()]


def test_is_closed_until_somebody_opens_it(esm_page: Make) -> None:
    esm = esm_page(LaboratoryPanel(lambda _: None, form=CLOSED))
    assert said(esm) == []
    door = esm.view().get_by_role("button", name="Open the analysis")
    expect(door).to_have_attribute("aria-expanded", "false")
    expect(esm.view().get_by_role("tab")).to_have_count(0)
    door.click()
    assert said(esm)[-1] == {"type": "open", "value": True}
    expect(door).to_be_disabled()  # until there is an answer
    esm.set(form=OPEN, state=REST)
    expect(esm.view().get_by_role("button", name="Close")).to_be_enabled()
    expect(esm.view().get_by_text("What is it?")).to_be_visible()
    esm.view().get_by_role("button", name="Close").click()
    assert said(esm)[-1] == {"type": "open", "value": False}


def test_tabs_by_click_and_by_key(esm_page: Make) -> None:
    esm = opened(esm_page)
    tab = esm.view().get_by_role("tab")
    expect(tab).to_have_count(3)
    expect(tab.nth(0)).to_have_attribute("aria-selected", "true")
    tab.nth(2).click()
    assert said(esm) == [{"type": "view", "name": "three"}]
    esm.set(form={**OPEN, "view": "three"})
    expect(tab.nth(2)).to_have_attribute("aria-selected", "true")
    expect(tab.nth(2)).to_have_attribute("tabindex", "0")
    tab.nth(2).press("ArrowRight")
    tab.nth(0).press("End")
    assert [message["name"] for message in said(esm)] == ["three", "one", "three"]


def test_choosing_a_tab_moves_no_other(esm_page: Make) -> None:
    esm = opened(esm_page)

    def places() -> list[float]:
        return (
            esm.view()
            .get_by_role("tab")
            .evaluate_all("all => all.map(e => e.getBoundingClientRect().left)")
        )

    before = places()
    esm.set(form={**OPEN, "view": "two"})
    assert places() == before


def test_controls_send_what_is_chosen(esm_page: Make) -> None:
    esm = opened(esm_page)
    view = esm.view()
    expect(view.get_by_label("matrix")).to_have_value("b")
    view.get_by_label("matrix").select_option("a")
    view.get_by_label("above chance").check()
    view.get_by_label("folder").fill("/runs/one")
    view.get_by_label("folder").press("Enter")
    assert said(esm) == [
        {"type": "set", "name": "site", "value": "a", "sliding": False},
        {"type": "set", "name": "excess", "value": True, "sliding": False},
        {"type": "set", "name": "folder", "value": "/runs/one", "sliding": False},
    ]
    assert esm.saves() == []


def slide(esm: EsmPage, *values: int) -> None:
    """Drag the slider over these values, without letting it go."""
    esm.view().get_by_label("step").evaluate(
        """(node, values) => values.forEach(value => {
            node.value = value;
            node.dispatchEvent(new Event("input", { bubbles: true }));
        })""",
        list(values),
    )


def test_a_slider_waits_for_its_answer_and_sends_only_the_newest(esm_page: Make) -> None:
    esm = opened(esm_page)
    mark = esm.view().locator(".ll-lab-mark")
    expect(mark).to_have_text("step 2")
    slide(esm, 1, 0, 1, 3)
    expect(mark).to_have_text("step 1000")  # the thumb and its text wait for nobody
    assert [m["value"] for m in said(esm)] == [1]
    answer(esm)
    assert [m["value"] for m in said(esm)] == [1, 3]
    answer(esm)
    answer(esm)
    assert [m["value"] for m in said(esm)] == [1, 3]
    assert all(m["sliding"] for m in said(esm))
    slide(esm, 0)
    esm.view().get_by_label("step").dispatch_event("change")
    assert said(esm)[-1] == {"type": "set", "name": "step", "value": 0, "sliding": False}


def test_a_slider_under_the_hand_stays_where_it_is(esm_page: Make) -> None:
    esm = opened(esm_page)
    slide(esm, 1)
    longer = {**STEP, "marks": [*STEP["marks"], "step 1500"], "value": 4}
    esm.set(form={**OPEN, "controls": [SITE, longer, BOX, FOLDER]})
    expect(esm.view().get_by_label("step")).to_have_value("1")
    expect(esm.view().get_by_label("step")).to_have_attribute("max", "4")
    esm.view().get_by_label("step").dispatch_event("change")
    esm.set(form={**OPEN, "controls": [SITE, {**longer, "value": 3}, BOX, FOLDER]})
    expect(esm.view().get_by_label("step")).to_have_value("3")


def test_what_is_typed_stays_while_other_controls_come(esm_page: Make) -> None:
    esm = opened(esm_page)
    folder = esm.view().get_by_label("folder")
    folder.click()
    folder.press_sequentially("/ru")
    esm.set(form={**OPEN, "controls": [{**SITE, "value": "a"}, STEP, BOX, FOLDER]})
    expect(folder).to_have_value("/ru")
    expect(folder).to_be_focused()
    expect(esm.view().get_by_label("matrix")).to_have_value("a")


def test_says_how_far_it_is_and_of_which_step_the_figure_is(esm_page: Make) -> None:
    esm = opened(esm_page)
    view = esm.view()
    expect(view.get_by_text("at step 120")).to_be_visible()
    view.get_by_role("button", name="Look again").click()
    assert said(esm)[-1] == {"type": "again"}
    height = view.locator(".ll-lab").bounding_box()["height"]
    esm.set(state=BUSY)
    expect(view.get_by_text("W₀'s directions: matrix 3 of 60")).to_be_visible()
    bar = view.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", "5")
    expect(view.get_by_role("button", name="Look again")).to_be_hidden()
    assert view.locator(".ll-lab").bounding_box()["height"] == height, "nothing jumps"
    view.get_by_role("button", name="Cancel").click()
    assert said(esm)[-1] == {"type": "cancel"}


def test_names_and_errors_are_text(esm_page: Make) -> None:
    evil = '<img src=x onerror="window.hacked = true">'
    problem = {"message": evil, "remedy": evil, "details": "", "field": ""}
    controls = [{**SITE, "label": evil, "options": [[evil, "b"]]}]
    form = {**OPEN, "question": evil, "controls": controls, "views": [["one", evil]]}
    esm = esm_page(
        LaboratoryPanel(lambda _: None),
        {"form": form, "state": {**BUSY, "busy": evil}, "problem": problem},
    )
    assert esm.view().locator("img").count() == 0
    expect(esm.view().get_by_role("alert").locator("b")).to_have_text(evil)
    esm.set(problem=None)
    expect(esm.view().get_by_role("alert")).to_be_hidden()


def test_keys_stay_out_of_the_notebook(esm_page: Make) -> None:
    esm = opened(esm_page)
    esm.page.evaluate(
        "() => { window.keys = []; document.addEventListener('keydown', e => keys.push(e.key)); }"
    )
    esm.view().get_by_label("folder").press("d")
    esm.view().get_by_role("tab").first.press("ArrowRight")
    assert esm.page.evaluate("() => keys") == []


@pytest.mark.parametrize("width", [340, 600, 1100])
def test_nothing_is_wider_than_its_place(esm_page: Make, width: int) -> None:
    long = "run r=8 · lr 0.002 · seed 0 · 20261121-205040-b509 of a very long name"
    controls = [{**SITE, "options": [[long, "b"]]}, STEP, BOX, FOLDER]
    views = [[str(i), f"A view {i}"] for i in range(8)]
    esm = esm_page(
        LaboratoryPanel(lambda _: None),
        {"form": {**OPEN, "controls": controls, "views": views}, "state": BUSY},
        width=width,
    )
    assert esm.page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("by", ["cleanup", "signal"])
def test_a_closed_view_leaves_nothing_behind(esm_page: Make, by: str) -> None:
    esm = opened(esm_page)
    esm.remove_view(by=by)
    assert esm.open_ends() == {"model": 0, "document": 0, "window": 0, "intervals": 0}
