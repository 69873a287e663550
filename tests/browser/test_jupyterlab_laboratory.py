"""The laboratory in a real JupyterLab: beside a busy cell, while a run trains, in little room."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import JupyterLab, Notebook, busy_until, small_bench

pytestmark = pytest.mark.browser

VIEWS = (
    "Spectrum",
    "Subspaces",
    "Amplification",
    "Over steps",
    "Intruders",
    "Across runs",
    "Capacity",
)


def trained(lab: JupyterLab, page: Page, *cells: str, steps: int = 12) -> Notebook:
    notebook = lab.open(page, [small_bench(steps), *cells])
    notebook.run(0, seconds=120)
    page.locator(".ll-workbench").get_by_role("button", name="Start", exact=True).click()
    if steps < 100:
        done = page.locator(".ll-run[data-ll-state=done]")
        expect(done).to_be_visible(timeout=120_000)
    return notebook


def figure(page: Page) -> Locator:
    return page.locator(".ll-laboratory .js-plotly-plot")


def show(page: Page, title: str) -> None:
    """Open a tab and wait until what it shows is there."""
    page.get_by_role("tab", name=title).click()
    expect(page.get_by_role("tab", name=title)).to_have_attribute("aria-selected", "true")
    expect(page.locator(".ll-lab[data-ll-state=rest]")).to_be_visible(timeout=60_000)
    expect(figure(page)).to_have_count(1, timeout=60_000)
    expect(page.locator(".ll-lab").get_by_role("alert")).to_be_hidden()


def test_every_view_draws_and_nothing_complains(lab: JupyterLab, page: Page) -> None:
    errors: list[str] = []
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    trained(lab, page)
    assert figure(page).count() == 0, "closed until asked for"
    page.get_by_role("button", name="Open the analysis").click()
    said, last = page.locator(".ll-lab-words"), ""
    for title in VIEWS:
        show(page, title)
        expect(said).not_to_be_empty()
        expect(said).not_to_have_text(last)  # each view says something of its own
        last = said.inner_text()
    # One place for all of them.
    widgets = page.evaluate(
        "() => document.querySelectorAll('.ll-laboratory .js-plotly-plot').length"
    )
    assert widgets == 1
    page.get_by_role("button", name="Close").click()
    expect(figure(page)).to_be_hidden()
    assert not [error for error in errors if "state" in error or "plotly" in error.lower()]


def test_it_works_beside_a_busy_cell(lab: JupyterLab, page: Page) -> None:
    notebook = trained(lab, page, busy_until("looked"))
    notebook.start(1)
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Open the analysis").click()
    show(page, "Over steps")
    slider = page.get_by_role("slider", name="step")
    before = page.locator(".ll-lab-words").inner_text()
    slider.press("Home")
    expect(page.locator(".ll-lab-words")).to_contain_text("Step 0 of 12")
    assert page.locator(".ll-lab-words").inner_text() != before
    assert not notebook.outputs(1), "the cell is still at work"
    (lab.folder / "looked").touch()
    notebook.wait_for(1)


def test_maps_move_while_it_trains(lab: JupyterLab, page: Page) -> None:
    trained(lab, page, steps=100_000)
    expect(page.locator(".ll-delta-spectrum .js-plotly-plot")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Open the analysis").click()
    show(page, "Over steps")
    slider = page.get_by_role("slider", name="step")
    first = slider.get_attribute("aria-valuetext")
    expect(slider).not_to_have_attribute("aria-valuetext", first or "", timeout=30_000)
    page.locator(".ll-workbench").get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator(".ll-run[data-ll-state=done]")).to_be_visible(timeout=60_000)


@pytest.mark.parametrize("width", [1000, 600])
def test_nothing_is_wider_than_its_place(lab: JupyterLab, page: Page, width: int) -> None:
    trained(lab, page)
    page.set_viewport_size({"width": width + 60, "height": 1200})
    page.evaluate("jupyterapp.shell.collapseLeft()")
    page.get_by_role("button", name="Open the analysis").click()
    for title in ("Subspaces", "Intruders"):
        show(page, title)
        page.wait_for_timeout(1_500)  # a tick, for the figure to follow the width
        room = page.locator(".ll-workbench").bounding_box()
        drawn = figure(page).bounding_box()
        assert room is not None
        assert drawn is not None
        assert drawn["x"] + drawn["width"] <= room["x"] + room["width"]
        overflow = page.evaluate(
            """() => {
                const edge = document.querySelector(".ll-workbench").getBoundingClientRect().right;
                return [...document.querySelectorAll(".ll-lab, .ll-lab *, .ll-lab-words")]
                    .filter(n => n.getBoundingClientRect().right > edge + 1)
                    .map(n => n.className);
            }"""
        )
        assert overflow == []
