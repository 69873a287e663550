"""Keeping what was learned in a real JupyterLab: saved, checked, fetched, opened."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.bench_page import button, show, wait_for_state
from tests.browser.lab import JupyterLab

pytestmark = pytest.mark.browser


def train_once(page: Page) -> str:
    """Train one run to its end; return its id."""
    shown = page.locator(".ll-run-foot .ll-run-id")
    before = shown.inner_text()
    button(page, "Start").click()
    expect(shown).not_to_have_text(before)  # the state is the run's before until then
    wait_for_state(page, "done")
    return shown.inner_text()


def test_a_run_is_saved_downloaded_used_and_gone_on_with(
    lab: JupyterLab, page: Page, tmp_path: Path
) -> None:
    show(lab, page, steps=4)
    keep = page.locator(".ll-keep").first
    first = train_once(page)
    button(page, "save it").click()
    keep.get_by_label("folder").fill("adapters/mine")
    keep.get_by_role("button", name="Save").click()
    said = keep.locator(".ll-keep-done")
    expect(said).to_contain_text("PEFT-format file")
    expect(said).to_contain_text("same answer")
    folder = lab.folder / "adapters" / "mine"
    assert {"README.md", "adapter_config.json"} <= {path.name for path in folder.iterdir()}

    keep.get_by_role("button", name="Save").click()
    expect(keep.get_by_role("alert").filter(has_text="holds an adapter already")).to_be_visible()
    keep.get_by_role("button", name="Cancel").press("Enter")
    expect(keep.get_by_role("alert").filter(has_text="holds an adapter")).to_be_hidden()

    with page.expect_download() as coming:
        keep.get_by_role("button", name="Download").click()
    assert coming.value.suggested_filename == f"{first}.zip"
    coming.value.save_as(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert f"{first}/adapter_model.safetensors" in archive.namelist()

    second = train_once(page)
    button(page, "Open the runs").click()
    button(page, f"Keep {first}").click()
    expect(keep.locator(".ll-head")).to_contain_text(first)
    keep.get_by_role("button", name="Use this adapter").click()
    expect(said).to_contain_text("is on the model")
    keep.get_by_role("button", name="Continue from here").click()
    wait_for_state(page, "done")
    third = page.locator(".ll-run-foot .ll-run-id").inner_text()
    assert third not in (first, second)
    expect(page.locator(f'[data-run="{third}"]')).to_contain_text(f"from run {first}")


def test_a_report_opens_in_a_tab_and_shows_figures_without_scripts_too(
    lab: JupyterLab, page: Page
) -> None:
    show(lab, page, steps=4)
    run = train_once(page)
    keep = page.locator(".ll-keep").first
    keep.get_by_role("button", name="Report", exact=True).click()
    link = keep.get_by_role("link", name="Open the report")
    expect(link).to_be_visible(timeout=60_000)
    with page.context.expect_page() as opening:
        link.click()
    report = opening.value
    expect(report.locator("h1")).to_be_visible()
    expect(report.locator(".js-plotly-plot").first).to_be_visible()
    assert report.locator(".picture").count() == 0
    report.close()

    path = lab.folder / "runs" / run / "report.html"
    browser = page.context.browser
    assert browser is not None
    blocked = browser.new_context(java_script_enabled=False)
    still = blocked.new_page()
    still.goto(path.as_uri())
    pictures = still.locator(".picture.light svg")
    assert pictures.count() >= 2
    expect(pictures.first).to_be_visible()
    blocked.close()


def test_a_run_is_named_and_starred_and_the_settings_that_differ_are_told(
    lab: JupyterLab, page: Page
) -> None:
    show(lab, page, steps=4)
    first = train_once(page)
    page.locator(".ll-run").first.get_by_label("seed", exact=True).fill("7")
    second = train_once(page)
    button(page, "Open the runs").click()
    button(page, f"star {first}").click()
    expect(button(page, f"star {first}")).to_have_attribute("aria-pressed", "true")
    button(page, f"Show {first}").click()
    details = page.locator(".ll-past-details")
    details.get_by_label("name").fill("the first one")
    details.get_by_role("button", name="Save name and note").click()
    expect(page.locator(f'[data-run="{first}"]')).to_contain_text("the first one")
    for run in (first, second):
        page.get_by_role("checkbox", name=f"compare {run}").check()
    differs = page.get_by_role("region", name="settings in which the picked runs differ")
    expect(differs.get_by_role("row")).to_have_count(2)
    expect(differs).to_contain_text("seed")
