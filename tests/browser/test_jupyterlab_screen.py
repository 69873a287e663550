"""What belongs together is on one screen of a real JupyterLab, and nothing jumps or is cut."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.bench_page import button, wait_for_state, wait_for_step
from tests.browser.lab import JupyterLab, Notebook, small_bench

pytestmark = pytest.mark.browser

ENDLESS = 100_000
LOOKED_AT = {
    "start": ".ll-run-primary",
    "loss": ".ll-run .ll-loss",
    "spectrum": ".ll-delta-spectrum .ll-plot",
    "grid": ".ll-rank-scroll",
}
# The charts follow their columns a frame later: measured is what stands still.
PLACES = """async selectors => {
    const bench = document.querySelector(".ll-workbench");
    const box = (node) => {
        const { left, right, top, bottom } = node.getBoundingClientRect();
        return { left, right, top, bottom };
    };
    const look = () => {
        bench.scrollIntoView({ block: "start" });
        const places = Object.entries(selectors)
            .map(([name, selector]) => [name, box(bench.querySelector(selector))]);
        const seen = box(bench.closest(".jp-WindowedPanel-outer"));
        return { ...Object.fromEntries(places), seen };
    };
    for (let last = "", found = look(); ; found = look()) {
        if (JSON.stringify(found) === last) return found;
        last = JSON.stringify(found);
        for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
    }
}"""
CUT = """() => {
    const bench = document.querySelector(".ll-workbench");
    const edge = bench.getBoundingClientRect().right + 1;
    return [...bench.querySelectorAll("*")]
        .filter((n) => n.getBoundingClientRect().width && !n.closest("[class*=hidden], .ll-sr"))
        .filter((n) => !n.closest(".ll-rank-scroll, .ll-past-scroll"))
        .filter((n) => n.getBoundingClientRect().right > edge)
        .map((n) => n.className?.toString() || n.tagName).slice(0, 5);
}"""


def places(page: Page) -> dict[str, dict[str, float]]:
    found: dict[str, Any] = page.evaluate(PLACES, LOOKED_AT)
    return found


def shown(
    lab: JupyterLab,
    page: Page,
    layers: int,
    *cells: str,
    sidebar: bool = False,
    settings: str = "",
) -> Notebook:
    bench = small_bench(ENDLESS, layers=layers).replace("max_length=96", f"max_length=96{settings}")
    notebook = lab.open(page, [bench, *cells])
    notebook.run(0, seconds=120)
    if not sidebar:
        page.evaluate("jupyterapp.shell.collapseLeft()")
        expect(page.locator("#jp-left-stack")).to_be_hidden()
    expect(page.locator(".ll-workbench")).to_be_visible()
    return notebook


def trains(page: Page) -> None:
    button(page, "Start").click()
    wait_for_state(page, "running")
    wait_for_step(page, 3)
    expect(page.locator(".ll-delta-spectrum .main-svg").first).to_be_visible(timeout=60_000)


# Settings behind "more" are named beside it: those took the form a line more.
SET = ", eval_examples=1, kept_texts=0, weight_decay=0.01"


@pytest.mark.parametrize(
    ("layers", "sidebar", "settings"), [(4, False, ""), (30, False, SET), (4, True, SET)]
)
def test_start_loss_and_spectrum_lie_on_a_small_screen(
    lab: JupyterLab, page: Page, layers: int, sidebar: bool, settings: str
) -> None:
    page.set_viewport_size({"width": 1366, "height": 768})
    shown(lab, page, layers, sidebar=sidebar, settings=settings)
    before = places(page)
    trains(page)
    found = places(page)
    seen = found.pop("seen")
    for name in ("start", "loss", "spectrum"):
        box = found[name]
        assert seen["top"] <= box["top"] < box["bottom"] <= seen["bottom"], (name, box, seen)
        assert seen["left"] <= box["left"] < box["right"] <= seen["right"], (name, box, seen)
    # Nothing has jumped as the run began.
    for name, box in found.items():
        assert box == pytest.approx(before[name], abs=1.5), name


def test_the_grid_has_no_hole_below_it_and_scrolls_inside(lab: JupyterLab, page: Page) -> None:
    page.set_viewport_size({"width": 1366, "height": 768})
    rows = "() => document.querySelectorAll('.ll-rank-row').length"
    for layers in (4, 30):
        shown(lab, page, layers)
        assert page.evaluate(rows) == layers + 1
        room, grid = (
            page.locator(selector).bounding_box()
            for selector in (".ll-rank-scroll", ".ll-rank-grid")
        )
        assert room is not None
        assert grid is not None
        assert grid["height"] >= 0.7 * room["height"], "small models leave no hole"


def test_the_host_does_not_give_buttons_its_own_corners(lab: JupyterLab, page: Page) -> None:
    shown(lab, page, 4)
    corners = """name => getComputedStyle(
        document.querySelector(`.ll-workbench ${name}`)).borderTopLeftRadius"""
    assert page.evaluate(corners, ".ll-button.ll-primary") == "6px"
    assert page.evaluate(corners, ".ll-term-mark") == "50%"


def test_no_chart_is_cut_at_any_width(lab: JupyterLab, page: Page) -> None:
    notebook = shown(lab, page, 4, "wb")
    trains(page)
    page.get_by_role("button", name="Open the analysis").click()
    for width in (1600, 1366, 1000, 700):
        notebook.clear_outputs()  # all charts are made anew, in that width
        page.set_viewport_size({"width": width, "height": 900})
        notebook.run(1)
        for place in (".ll-delta-spectrum", ".ll-laboratory"):
            expect(page.locator(f"{place} .main-svg").first).to_be_visible(timeout=60_000)
        page.wait_for_function(f"() => !({CUT})().length")
        inside = """() => [...document.querySelectorAll(".ll-plot.js-plotly-plot")].map((plot) => [
            plot.querySelector(".main-svg").getBoundingClientRect().width, plot.clientWidth])"""
        charts = page.evaluate(inside)
        assert len(charts) >= 2, width
        for drawn, room in charts:
            assert drawn <= room + 1, width
