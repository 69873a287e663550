"""The run panel's form in Chromium: fields from Python, methods with their rates, wrong entries."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.run_panel_page import Make, panel

pytestmark = pytest.mark.browser


def test_the_chooser_shows_each_methods_own_settings_at_once(esm_page: Make) -> None:
    esm = esm_page(panel(), {"plan": {"line": "", "bad": False, "automatic": {"init_r": 12}}})
    view = esm.view()
    chooser = view.get_by_role("combobox", name="method")
    alpha = view.get_by_role("textbox", name="α")
    expect(chooser).to_have_value("LoRA")
    expect(alpha).to_be_visible()
    expect(view.get_by_role("textbox", name="prefix l_p")).to_be_hidden()
    chooser.select_option("PreEmbed")
    expect(view.get_by_role("textbox", name="prefix l_p")).to_have_value("8")
    expect(alpha).to_be_hidden()
    chooser.select_option("AdaLoRA")
    start = view.get_by_role("textbox", name="init_r")
    expect(start).to_have_value("")
    expect(start).to_have_attribute("placeholder", "12")
    start.fill("9")
    chooser.select_option("BitFit")
    view.get_by_role("checkbox", name="new zero biases").check()
    view.get_by_role("button", name="Start", exact=True).click()
    told = [m["settings"] for m in esm.sent() if m["type"] == "settings"]
    assert {"method": "PreEmbed"} in told
    assert {"new_biases": True} in told
    (command,) = [m for m in esm.sent() if m["type"] == "command"]
    expected = {**panel().settings, "method": "BitFit", "new_biases": True, "init_r": 9}
    assert command["settings"] == expected
    assert esm.saves() == []


def test_why_a_method_cannot_be_is_text_in_a_line_of_its_own(esm_page: Make) -> None:
    evil = '<img src=x onerror="window.hacked = true">'
    esm = esm_page(panel(), width=500)
    line, start = esm.view().locator(".ll-method-line"), esm.view().get_by_role("button").first
    before = start.bounding_box()
    esm.set(plan={"line": evil + " and so on" * 30, "bad": True, "automatic": {}})
    expect(line).to_contain_text(evil)
    expect(line).to_have_class("ll-method-line ll-method-bad")
    assert start.bounding_box() == before, "nothing below it moves"
    assert esm.page.evaluate("() => window.hacked") is None


def test_a_method_brings_its_learning_rate_at_once(esm_page: Make) -> None:
    esm = esm_page(panel())
    view = esm.view()
    rate = view.get_by_role("textbox", name="learning rate")
    expect(rate).to_have_value("0.01")
    expect(view.locator(".ll-method-rate")).to_contain_text("learning rate 0.01 is LoRA's own")
    view.get_by_role("combobox", name="method").select_option("FT")
    expect(rate).to_have_value("0.002")  # before Python has said a word
    (told,) = [m["settings"] for m in esm.sent() if m["type"] == "settings"]
    assert told == {"method": "FT", "learning_rate": 2e-3}
    view.get_by_role("button", name="Start", exact=True).click()
    (start,) = [m for m in esm.sent() if m["type"] == "command"]
    assert start["settings"]["learning_rate"] == 2e-3


def test_wrong_entries_are_marked_at_their_fields_with_the_reason(esm_page: Make) -> None:
    made = panel()
    made._handle(
        {"type": "settings", "seq": "s", "settings": {"learning_rate": -1, "weight_decay": "x"}}
    )
    esm = esm_page(made)
    view = esm.view()
    marked = view.locator("[aria-invalid]")
    expect(marked).to_have_count(2)
    for name, why in (
        ("learning rate", "learning rate is -1; it must be a positive number"),
        ("weight decay", "weight decay is 'x'; it must be a number"),
    ):
        field = view.get_by_role("textbox", name=name)
        expect(field).to_be_visible()  # also behind "more", which is open then
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_have_attribute("title", why)
        expect(view.locator(".ll-method-bad")).to_contain_text(why)
    esm.set(plan={**esm.get("plan"), "wrong": {}})
    expect(marked).to_have_count(0)
    expect(view.locator(".ll-method-bad")).to_have_count(0)


def test_what_is_seldom_needed_stands_behind_more_and_is_named_there(esm_page: Make) -> None:
    esm = esm_page(panel(), width=700)
    view = esm.view()
    more = view.locator(".ll-run-more > summary")
    expect(more).to_have_text("more")
    expect(view.get_by_role("checkbox", name="DoRA")).to_be_hidden()
    more.click()
    view.get_by_role("checkbox", name="DoRA").check()
    view.get_by_role("combobox", name="init").select_option("OLoRA")
    view.get_by_role("textbox", name="LoRA+").fill("16")
    view.get_by_role("combobox", name="best by").select_option("chrf")
    expect(view.get_by_role("textbox", name="head rate")).to_be_hidden()
    view.get_by_role("combobox", name="schedule").select_option("cosine")
    view.get_by_role("checkbox", name="recompute").check()
    view.get_by_role("button", name="Start", exact=True).click()
    (start,) = [m for m in esm.sent() if m["type"] == "command"]
    assert start["settings"] == {
        **panel().settings,
        "use_dora": True,
        "init_lora_weights": "OLoRA",
        "loraplus_lr_ratio": 16,
        "metric_for_best_model": "chrf",
        "lr_scheduler_type": "cosine",
        "gradient_checkpointing": True,
    }
    esm.set(settings=start["settings"])
    expect(more).to_have_text("more · DoRA · init · LoRA+ · best by")


def test_a_choice_from_python_that_is_none_of_the_options_is_kept(esm_page: Make) -> None:
    settings = {**panel().settings, "init_lora_weights": "pissa_niter_4"}
    esm = esm_page(panel(), {"settings": settings})
    esm.view().get_by_role("button", name="Start", exact=True).click()
    (start,) = [m for m in esm.sent() if m["type"] == "command"]
    assert start["settings"] == settings


@pytest.mark.parametrize("width", [360, 430, 640, 1000])
def test_no_field_lies_over_another_at_any_width(esm_page: Make, width: int) -> None:
    esm = esm_page(panel(), width=width)
    view = esm.view()
    view.locator(".ll-run-more > summary").click()
    boxes = view.locator(".ll-field:visible").evaluate_all(
        "all => all.map(n => n.getBoundingClientRect())"
        ".map(box => [box.left, box.top, box.right, box.bottom])"
    )
    for a in boxes:
        for b in boxes:
            apart = a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1
            assert a == b or apart
    cut = view.locator(".ll-field:visible > span").evaluate_all(
        "all => all.filter(n => n.scrollWidth > n.parentElement.clientWidth + 1)"
        ".map(n => n.innerText)"
    )
    assert cut == []


def test_a_method_that_python_adds_can_be_chosen(esm_page: Make) -> None:
    esm = esm_page(panel())
    added = {"name": "LoRA+BitFit", "text": "LoRA+BitFit", "fields": []}
    settings = {**esm.get("settings"), "method": "LoRA+BitFit"}
    esm.set(methods=[*esm.get("methods"), added], settings=settings)
    expect(esm.view().get_by_role("combobox", name="method")).to_have_value("LoRA+BitFit")
    expect(esm.view().get_by_role("textbox", name="α")).to_be_hidden()
