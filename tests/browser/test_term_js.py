"""The "?" beside a term, in Chromium: opens, is read out, closes, and moves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from lora_lab.anatomy import anatomy
from lora_lab.captions.glossary import Term, glossary
from lora_lab_widgets.rank_grid import RankGrid
from lora_lab_widgets.savings import Savings
from tests.browser.esm import EsmPage
from tests.browser.run_panel_page import TRAINING, panel, shown
from tests.helpers.tiny_models import tiny_config

pytestmark = pytest.mark.browser

Make = Callable[..., EsmPage]
BOXES = """root => [...root.querySelectorAll("*")]
    .filter((node) => !node.closest(".ll-term-text"))
    .map((node) => node.getBoundingClientRect())
    .map((box) => [box.left, box.top, box.width, box.height])"""


def mark(place: Locator, title: str) -> Locator:
    """Return the "?" whose first term has that title."""
    return place.get_by_role("button", name=f"what is {title}", exact=False).first


def term(key: str) -> Term:
    found = glossary(key)
    assert isinstance(found, Term)
    return found


def run_form(esm_page: Make, **state: Any) -> EsmPage:
    return esm_page(panel(), state or None)


def test_a_click_opens_what_the_glossary_says_and_nothing_moves(esm_page: Make) -> None:
    esm = run_form(esm_page)
    view = esm.view()
    alpha = term("alpha")
    form = view.locator(".ll-run-form")  # beside it "kernel busy" comes when it likes
    before = form.evaluate(BOXES)
    mark(view, alpha.title).click()
    text = view.get_by_role("dialog", name=alpha.title)
    expect(text).to_be_visible()
    for part in (alpha.title, *alpha.lines):
        expect(text).to_contain_text(part)
    assert form.evaluate(BOXES) == before
    opened = mark(view, alpha.title)
    expect(opened).to_have_attribute("aria-expanded", "true")
    assert opened.get_attribute("aria-controls") == text.get_attribute("id")
    opened.click()
    expect(text).to_be_hidden()
    expect(opened).to_have_attribute("aria-expanded", "false")


def test_the_keyboard_opens_it_reads_it_and_comes_back(esm_page: Make) -> None:
    esm = run_form(esm_page)
    view = esm.view()
    for key in ("Enter", " "):
        where = mark(view, term("alpha").title)
        where.focus()
        where.press(key)
        text = view.get_by_role("dialog", name=term("alpha").title)
        expect(text).to_be_focused()
        esm.page.keyboard.press("Escape")
        expect(text).to_be_hidden()
        expect(where).to_be_focused()
    # Tab goes on to the field, whose name it is no part of.
    esm.page.keyboard.press("Tab")
    expect(view.get_by_role("textbox", name="α", exact=True)).to_be_focused()


def test_a_click_or_the_focus_elsewhere_closes_it_and_one_is_open_at_a_time(
    esm_page: Make,
) -> None:
    esm = run_form(esm_page)
    view = esm.view()
    mark(view, term("alpha").title).click()
    mark(view, term("dropout").title).click()
    expect(view.get_by_role("dialog")).to_have_count(1)
    expect(view.get_by_role("dialog", name=term("dropout").title)).to_be_visible()
    view.get_by_role("textbox", name="seed").focus()
    expect(view.get_by_role("dialog")).to_have_count(0)
    mark(view, term("alpha").title).click()
    esm.page.mouse.click(3, 3)
    expect(view.get_by_role("dialog")).to_have_count(0)


def test_no_listener_stays_behind(esm_page: Make) -> None:
    esm = run_form(esm_page)
    before = esm.open_ends()
    mark(esm.view(), term("alpha").title).click()
    esm.page.keyboard.press("Escape")
    assert esm.open_ends() == before


def test_it_explains_a_form_that_waits_for_its_run(esm_page: Make) -> None:
    esm = run_form(esm_page, snapshot=shown(TRAINING, state="running"))
    view = esm.view()
    expect(view.get_by_role("textbox", name="α", exact=True)).to_be_disabled()
    mark(view, term("alpha").title).click()
    expect(view.get_by_role("dialog", name=term("alpha").title)).to_be_visible()
    esm.set(snapshot=shown(TRAINING, state="running", step=187))  # and stays while it trains
    expect(view.get_by_role("dialog", name=term("alpha").title)).to_be_visible()


def test_the_method_that_is_chosen_is_the_one_that_is_explained(esm_page: Make) -> None:
    esm = run_form(esm_page)
    view = esm.view()
    mark(view, "LoRA").click()
    expect(view.get_by_role("dialog")).to_contain_text(term("lora").text)
    esm.page.keyboard.press("Escape")
    view.get_by_role("combobox", name="method").select_option("BitFit")
    mark(view, "BitFit").click()
    expect(view.get_by_role("dialog")).to_contain_text(term("bitfit").text)
    esm.page.keyboard.press("Escape")
    # A notebook's own method has no term, and no "?".
    own = {"name": "Mine", "text": "Mine", "fields": [], "terms": []}
    esm.set(methods=[own], settings={**esm.get("settings"), "method": "Mine"})
    expect(view.locator(".ll-field", has_text="method").locator(".ll-term-mark")).to_be_hidden()


@pytest.mark.parametrize(("width", "height"), [(360, 300), (1000, 700)])
def test_it_lies_on_the_page_wherever_its_mark_is(esm_page: Make, width: int, height: int) -> None:
    esm = esm_page(panel(), width=width, height=height)
    view = esm.view()
    marks = view.locator(".ll-term-mark:visible")
    assert marks.count() > 8
    for index in range(marks.count()):
        marks.nth(index).click()
        box = view.get_by_role("dialog").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["y"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
        esm.page.keyboard.press("Escape")


def test_the_roles_of_the_grid_have_this_models_shapes(esm_page: Make) -> None:
    esm = esm_page(RankGrid.from_anatomy(anatomy(tiny_config("llama"))))
    mark(esm.view(), "roles").click()
    facts = esm.view().get_by_role("dialog").locator("dd")
    names = esm.view().get_by_role("dialog").locator("dt").all_inner_texts()
    config = tiny_config("llama")
    d, inner = config.hidden_size, config.intermediate_size
    kv = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    said = dict(zip(names, facts.all_inner_texts(), strict=True))
    assert said == {
        "q": f"query projection, {d} × {d}",
        "k": f"key projection, {kv} × {d}",
        "v": f"value projection, {kv} × {d}",
        "o": f"output projection, {d} × {d}",
        "gate": f"the MLP's gate, {inner} × {d}",
        "up": f"the MLP's first matrix, {inner} × {d}",
        "down": f"the MLP's last matrix, {d} × {inner}",
    }


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_its_text_stands_out_in_both_themes(esm_page: Make, theme: str) -> None:
    esm = esm_page(Savings())
    esm.theme(theme)
    mark(esm.view(), term("savings").title).click()
    text = esm.view().get_by_role("dialog")
    colors = text.evaluate(
        "node => [getComputedStyle(node).color, getComputedStyle(node).backgroundColor]"
    )
    ink, ground = (luminance(color) for color in colors)
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 7  # WCAG's AAA
    assert (ground < 0.2) is (theme == "dark")


def luminance(color: str) -> float:
    """Return WCAG's relative luminance of "rgb(…)"."""
    levels = [float(part) / 255 for part in color.strip("rgb()").split(",")[:3]]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
