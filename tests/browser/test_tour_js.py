"""The tour of the workbench, in Chromium: five stops, by mouse or keys, and gone for good."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser

Make = Callable[..., EsmPage]
TRAITS = {"chips": ["tiny", "LoRA"], "device": "CPU · float32", "others": ""}
# The header in a workbench whose other panels are as good as empty.
BENCH = """() => {
    const bench = document.createElement("div");
    bench.className = "ll-workbench ll-panel";
    const view = document.querySelector("[data-view]");
    view.before(bench);
    bench.append(view);
    const place = (tag, name) => {
        const node = document.createElement(tag);
        node.className = name;
        node.textContent = name;
        node.style.cssText = "display: block; margin-top: 120px";
        bench.append(node);
    };
    place("section", "ll-ranks");
    place("section", "ll-savings");
    place("button", "ll-run-primary");
    place("div", "ll-delta-head");
}"""
TITLES = ("Pick a model and data", "Paint ranks", "See what it costs", "Start", "Watch ΔW")
PLACES = (".ll-header", ".ll-ranks", ".ll-savings", ".ll-run-primary", ".ll-delta-head")


@pytest.fixture
def bench(esm_page: Make) -> EsmPage:
    esm = esm_page("header", TRAITS, height=400, fresh=True)
    esm.page.evaluate(BENCH)
    esm.page.set_viewport_size({"width": 990, "height": 400})  # the header has a size: it looks
    return esm


def offer(esm: EsmPage) -> Locator:
    return esm.page.get_by_role("button", name="New here? A tour")


def stop(esm: EsmPage, index: int) -> Locator:
    return esm.page.get_by_role("dialog", name=f"tour: {TITLES[index]}")


def test_five_stops_each_beside_its_place_and_in_sight(bench: EsmPage) -> None:
    offer(bench).click()
    for index, place in enumerate(PLACES):
        expect(stop(bench, index)).to_be_visible()
        expect(stop(bench, index)).to_contain_text(f"{index + 1} of 5")
        expect(bench.page.locator(".ll-tour-here")).to_have_count(1)
        expect(bench.page.locator(place)).to_have_class(here(place))
        box = stop(bench, index).bounding_box()
        assert box is not None
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 400
        bench.page.get_by_role("button", name="Done" if index == 4 else "Next").click()
    expect(bench.page.get_by_role("dialog")).to_have_count(0)
    expect(bench.page.locator(".ll-tour-here")).to_have_count(0)
    expect(offer(bench)).to_be_hidden()
    expect(change(bench)).to_be_focused()


def change(esm: EsmPage) -> Locator:
    """Return the button that stays: a focus that is in the tour goes there at its end."""
    return esm.page.get_by_role("button", name="change the model or the data").first


def here(place: str) -> str:
    """Return the class of a place that is pointed to."""
    own = {".ll-header": "ll-panel ll-header"}.get(place, place[1:])
    return f"{own} ll-tour-here"


def test_the_arrow_keys_lead_through_it_and_escape_puts_it_away(bench: EsmPage) -> None:
    offer(bench).focus()
    keys = bench.page.keyboard
    keys.press("Enter")
    expect(stop(bench, 0)).to_be_focused()
    keys.press("ArrowLeft")  # there is none before the first
    expect(stop(bench, 0)).to_be_visible()
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    expect(stop(bench, 2)).to_be_focused()
    keys.press("ArrowLeft")
    expect(stop(bench, 1)).to_be_visible()
    keys.press("Escape")
    expect(bench.page.get_by_role("dialog")).to_have_count(0)
    expect(offer(bench)).to_be_focused()  # it may be wanted again


def test_the_page_can_be_used_meanwhile(bench: EsmPage) -> None:
    offer(bench).click()
    bench.page.get_by_role("button", name="change the model or the data").click()
    assert bench.sent() == [{"type": "choose"}]
    expect(stop(bench, 0)).to_be_visible()


@pytest.mark.parametrize("way", ["no tour, now or later", "Not again"])
def test_it_is_refused_for_good(bench: EsmPage, way: str) -> None:
    if way == "Not again":
        offer(bench).click()
    bench.page.get_by_role("button", name=way).click()
    expect(offer(bench)).to_be_hidden()
    expect(change(bench)).to_be_focused()
    assert bench.page.evaluate("() => localStorage.getItem('lora-lab-tour')") == "over"
    view = bench.add_view()  # as after a reload
    expect(view.locator(".ll-header")).to_be_visible()
    expect(view.get_by_role("button", name="New here? A tour")).to_be_hidden()


def test_a_page_that_may_store_nothing_has_it_all_the_same(esm_page: Make) -> None:
    esm = esm_page("header", TRAITS, views=0, fresh=True)
    esm.page.evaluate(
        "() => Object.defineProperty(window, 'localStorage',"
        " { get() { throw new DOMException('denied', 'SecurityError'); } })"
    )
    esm.add_view()
    esm.page.evaluate(BENCH)
    esm.page.set_viewport_size({"width": 990, "height": 400})
    offer(esm).click()
    stop(esm, 0).get_by_role("button", name="Not again").click()
    expect(offer(esm)).to_be_hidden()
    assert esm.errors == []


def test_it_is_not_offered_where_there_is_no_workbench_to_be_shown(esm_page: Make) -> None:
    esm = esm_page("header", TRAITS, fresh=True)
    expect(esm.view().get_by_text("LoRA Lab")).to_be_visible()
    expect(offer(esm)).to_be_hidden()


def test_a_view_that_goes_takes_its_tour_with_it(bench: EsmPage) -> None:
    before = bench.open_ends()
    offer(bench).click()
    bench.remove_view(0)
    expect(bench.page.get_by_role("dialog")).to_have_count(0)
    assert bench.open_ends()["document"] <= before["document"]
