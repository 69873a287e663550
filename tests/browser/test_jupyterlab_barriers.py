"""The whole workbench as JupyterLab shows it: no barrier in anybody's way, and nothing cut off."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.bench_page import button, show, wait_for_state
from tests.browser.lab import ROOT, JupyterLab

THEME = "name => jupyterapp.commands.execute('apputils:change-theme', { theme: name })"
# A "?" of the savings and one of the run's form, and the tour.
OVER_THE_PAGE = ("what is formula, dry run, measured", "what is α and α/r", "New here? A tour")
# What axe finds, as rule, place and reason; how a whole page is laid out is JupyterLab's affair.
BARRIERS = """async () => {
    const options = { rules: { region: { enabled: false } } };
    const { violations } = await axe.run(".ll-workbench", options);
    return violations.flatMap(({ id, nodes }) =>
        nodes.map(({ html, failureSummary }) => `${id}: ${html}: ${failureSummary}`));
}"""
# Whether each chart is drawn, and as wide as its place at most.
UNCUT = """() => {
    const edge = document.querySelector(".ll-workbench").getBoundingClientRect().right;
    const charts = [...document.querySelectorAll(".ll-workbench :is(.main-svg, .ll-loss)")];
    const widths = charts.map((chart) => chart.getBoundingClientRect()).filter((r) => r.width);
    return widths.length > 3 && widths.every(({ right }) => right <= edge);
}"""


def axe() -> str:
    """Return axe-core, which `make check` fetches with what else reads the JavaScript."""
    script = ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        pytest.skip("AXE SKIPPED: no node_modules/axe-core; run `make check` once, it fetches it")
    return script.read_text(encoding="utf-8")


@pytest.mark.browser
def test_no_panel_has_a_barrier_and_no_figure_is_cut(lab: JupyterLab, page: Page) -> None:
    """All panels open, after a run: by axe in both themes, and in a window of 700 px."""
    show(lab, page, steps=6)
    button(page, "Start").click()
    wait_for_state(page, "done", seconds=120)
    for name in (
        "Open the advice",
        "Open the analysis",
        "Open the sweep",
        "Open the runs",
        "change the model or the data",
    ):
        button(page, name).click()
    page.locator(".ll-run-more > summary").click()
    page.get_by_role("textbox", name="label smoothing").fill("2")
    page.get_by_role("textbox", name="label smoothing").press("Tab")
    expect(page.locator(".ll-method-bad")).to_contain_text("label smoothing is 2")
    page.locator(".ll-past-row .ll-tick").first.check()
    expect(page.locator(".ll-past-compared")).to_be_visible()
    expect(page.locator(".ll-workbench .js-plotly-plot")).to_have_count(3)
    page.set_viewport_size({"width": 700, "height": 1500})
    page.wait_for_function(UNCUT)
    page.set_viewport_size({"width": 1400, "height": 1500})
    page.evaluate("source => { (0, eval)(source); }", axe())
    for theme, is_light in (("Light", "true"), ("Dark", "false")):
        page.evaluate(THEME, f"JupyterLab {theme}")
        expect(page.locator("body")).to_have_attribute("data-jp-theme-light", is_light)
        for opens in OVER_THE_PAGE:
            button(page, opens).first.click()
            expect(page.get_by_role("dialog")).to_be_visible()
            assert page.evaluate(BARRIERS) == [], (theme, opens)
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
        assert page.evaluate(BARRIERS) == [], theme
