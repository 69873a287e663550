"""Base against adapted in Chromium: asking, waiting, showing as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from lora_lab_widgets.try_it import TryIt
from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

DONE = {"prompt": "name[Alimentum]", "base": "Rome!", "adapted": "Alimentum.", "seconds": 3.2}


def panel(**kwargs: Any) -> TryIt:
    return TryIt(lambda prompt, tokens: ("", ""), prompt="name[Alimentum]", **kwargs)


def test_compare_sends_what_is_typed(esm_page: Make) -> None:
    esm = esm_page(panel(), views=2)
    esm.clear_log()
    prompt = esm.view(0).get_by_role("textbox", name="prompt")
    expect(prompt).to_have_value("name[Alimentum]")
    prompt.fill("name[Zizzi]")
    expect(esm.view(1).get_by_role("textbox", name="prompt")).to_have_value("name[Zizzi]")
    esm.view(0).get_by_label("max new tokens").last.fill("20")
    esm.view(0).get_by_role("button", name="Compare", exact=True).click()
    prompt.press("Control+Enter")
    wanted = {"type": "compare", "prompt": "name[Zizzi]", "max_new_tokens": 20}
    assert esm.sent() == [wanted, wanted]
    expect(esm.view(0).get_by_role("status")).to_have_text("waiting for the kernel…")
    assert esm.saves() == []


def test_says_what_goes_around_the_prompt(esm_page: Make) -> None:
    made = TryIt(lambda prompt, tokens: ("", ""), lambda: "the model's chat template")
    esm = esm_page(made)
    wanted = "one prompt, answered without and with the adapter; framing: the model's chat template"
    expect(esm.view().get_by_text(wanted)).to_be_visible()
    esm.set(framing="")
    expect(esm.view().get_by_text("framing")).to_have_count(0)


def test_shows_that_it_is_busy_and_then_both_answers(esm_page: Make) -> None:
    esm = esm_page(panel())
    esm.clear_log()
    view = esm.view()
    esm.set(busy="waiting for the next step…")
    expect(view.get_by_role("status")).to_have_text("waiting for the next step…")
    expect(view.get_by_role("button", name="Compare", exact=True)).to_be_disabled()
    view.get_by_role("textbox", name="prompt").press("Control+Enter")
    assert esm.sent() == []
    esm.set(busy="", answers=DONE)
    expect(view.get_by_role("region", name="answer of the base model")).to_have_text("Rome!")
    expect(view.get_by_role("region", name="answer of the adapted model")).to_have_text(
        "Alimentum."
    )
    expect(view.get_by_role("status")).to_have_text("took 3.2 s")
    view.get_by_role("textbox", name="prompt").fill("something else")
    expect(view.get_by_role("status")).to_have_text("the answers are to an earlier prompt")


def test_says_when_there_is_no_adapter(esm_page: Make) -> None:
    esm = esm_page(panel(), {"answers": {**DONE, "adapted": None}})
    expect(esm.view().get_by_role("region", name="answer of the adapted model")).to_have_text(
        "no adapter yet: start a run first"
    )


def test_answers_and_errors_are_text(esm_page: Make) -> None:
    evil = '<img src=x onerror="window.hacked = true">'
    problem = {"message": evil, "remedy": evil, "details": evil, "field": ""}
    esm = esm_page(panel(), {"answers": {**DONE, "base": evil}, "problem": problem})
    assert esm.view().locator("img").count() == 0
    expect(esm.view().get_by_role("region", name="answer of the base model")).to_have_text(evil)
    expect(esm.view().get_by_role("alert").locator("b")).to_have_text(evil)
    esm.set(problem=None)
    expect(esm.view().get_by_role("alert")).to_be_hidden()


def test_keys_stay_out_of_the_notebook(esm_page: Make) -> None:
    esm = esm_page(panel())
    esm.page.evaluate(
        "() => { window.keys = []; document.addEventListener('keydown', e => keys.push(e.key)); }"
    )
    esm.view().get_by_role("textbox", name="prompt").press("d")
    assert esm.page.evaluate("() => keys") == []


@pytest.mark.parametrize("width", [360, 1000])
def test_columns_stand_side_by_side_where_there_is_room(esm_page: Make, width: int) -> None:
    esm = esm_page(panel(), {"answers": {**DONE, "base": "long " * 400}}, width=width)
    boxes = [box.bounding_box() for box in esm.view().locator(".ll-answer").all()]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert (boxes[0]["y"] == boxes[1]["y"]) is (width == 1000)
    assert esm.page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("by", ["cleanup", "signal"])
def test_leaves_nothing_behind(esm_page: Make, by: str) -> None:
    esm = esm_page(panel())
    esm.remove_view(0, by=by)
    assert esm.open_ends() == {"model": 0, "document": 0, "window": 0, "intervals": 0}


def test_a_class_is_named_without_a_length(esm_page: Make) -> None:
    esm = esm_page(panel(tries="one text, classified", writes=False))
    expect(esm.view().get_by_text("one text, classified")).to_be_visible()
    expect(esm.view().get_by_text("max new tokens")).to_be_hidden()
    esm.set(writes=True)
    expect(esm.view().get_by_text("max new tokens")).to_be_visible()


def test_answers_say_whose_they_are_and_pale_under_another_adapter(
    esm_page: Callable[..., EsmPage],
) -> None:
    answers = {"prompt": "p", "base": "b", "adapted": "a", "seconds": 1.0, "of": "run 1-2"}
    esm = esm_page(TryIt(lambda prompt, tokens: ("", "")), {"prompt": "p", "answers": answers})
    root, status = esm.view().locator(".ll-try"), esm.view().locator(".ll-try-status")
    expect(esm.view()).to_contain_text("adapted modelrun 1-2")
    expect(status).to_have_text("took 1 s")
    expect(root).not_to_have_class(re.compile("ll-stale"))
    esm.set(outdated=True)
    expect(status).to_have_text("these are answers of run 1-2: compare again")
    expect(root).to_have_class(re.compile("ll-stale"))
    esm.set(answers={**answers, "adapted": None, "of": ""})
    expect(status).to_have_text("these are answers of no adapter: compare again")
