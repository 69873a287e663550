"""The history in a real JupyterLab: a run outlives its kernel; what comes from outside is text."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import ROOT, JupyterLab, Notebook, small_bench

pytestmark = pytest.mark.browser

EVIL_TEXT = "<img src=x onerror=window.hacked=1>"
EVIL_NAME = "<script>window.hacked=1</script>"
EVIL_BENCH = f"""\
import sys; sys.path[:0] = [{{here!r}}]
import torch; torch.set_num_threads(1)
from tests.helpers.tiny_chat import tiny_chat_model
from lora_lab.models import LoadedModel
from lora_lab.tasks import Example, GenerationTask
from lora_lab_widgets import Workbench
evil, name = {EVIL_TEXT!r}, {EVIL_NAME!r}
rows = [Example(evil, evil, (evil,)) for _ in range(8)]
task = GenerationTask(evil, synthetic=True, train=rows, validation=rows[:2])
lm = LoadedModel.given(*tiny_chat_model(), name)
wb = Workbench(lm, task=task, max_steps=4, per_device_train_batch_size=2, max_length=96)
wb"""


def show(page: Page, lab: JupyterLab, *cells: str) -> Notebook:
    notebook = lab.open(page, list(cells))
    notebook.run(0, seconds=120)
    expect(page.locator(".ll-workbench")).to_be_visible()
    return notebook


def open_history(page: Page) -> None:
    page.get_by_role("button", name="Open the runs").click()
    expect(page.locator(".ll-past-row[data-run]").first).to_be_visible()


def button(page: Page, name: str, *, exact: bool = True):
    return page.locator(".ll-workbench").get_by_role("button", name=name, exact=exact)


def state(page: Page, wanted: str) -> None:
    expect(page.locator(f".ll-run[data-ll-state={wanted}]")).to_be_visible(timeout=60_000)


def step(page: Page) -> int:
    return int(page.locator(".ll-run").get_attribute("data-ll-step") or 0)


def test_a_run_outlives_its_kernel_and_goes_on(lab: JupyterLab, page: Page) -> None:
    bench = small_bench(100_000)
    notebook = show(page, lab, bench, "wb.run.id, wb.run.snapshot.step")
    button(page, "Start").click()
    expect(page.locator(".ll-run")).to_have_attribute(
        "data-ll-step", re.compile(r"[1-9]"), timeout=60_000
    )
    button(page, "Stop").click()
    state(page, "done")
    stopped = page.locator(".ll-run-foot .ll-run-id").inner_text()
    at = step(page)

    button(page, "Start").click()  # the kernel ends under this one
    state(page, "running")
    expect(page.locator(".ll-run")).to_have_attribute(
        "data-ll-step", re.compile(r"[1-9]"), timeout=60_000
    )
    cut = page.locator(".ll-run-foot .ll-run-id").inner_text()
    notebook.restart()
    notebook.run(0, seconds=120)
    open_history(page)
    rows = page.locator(".ll-past-row[data-run]")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_have_attribute("data-run", cut)
    # Stopped where the kernel had the time to end it at a step, else cut off.
    expect(rows.nth(0)).to_have_attribute("data-ll-state", re.compile("cut off|stopped"))
    expect(rows.nth(1)).to_have_attribute("data-ll-state", "stopped")
    for run in (cut, stopped):
        page.get_by_role("checkbox", name=f"compare {run}").check()
    expect(page.locator(".ll-loss-curves path.ll-curve")).to_have_count(2)
    button(page, f"Show {stopped}").click()
    expect(page.locator(".ll-past-config")).to_contain_text("ll.LoraConfig(r=8, lora_alpha=16")

    button(page, f"Resume {stopped}").click()
    state(page, "running")
    expect(page.locator(".ll-run-foot .ll-run-id")).to_have_text(stopped)
    page.wait_for_function(
        "at => Number(document.querySelector('.ll-run').dataset.llStep) > at", arg=at + 2
    )
    button(page, "Stop").click()
    state(page, "done")
    notebook.run(1)
    run, reached = eval(notebook.output(1))
    assert (run, reached > at) == (stopped, True)
    expect(page.locator(f'[data-run="{stopped}"]')).to_have_attribute("data-ll-state", "stopped")
    button(page, f"Delete {cut}").click()
    button(page, f"Sure? {cut}").click()
    expect(rows).to_have_count(1)
    assert [path.name for path in (lab.folder / "runs").iterdir()] == [stopped]


def test_what_comes_from_outside_is_text_everywhere(lab: JupyterLab, page: Page) -> None:
    bench = EVIL_BENCH.format(here=str(ROOT))
    fallback = "from IPython.display import HTML; HTML(wb.fallback_html())"
    notebook = show(page, lab, bench, fallback, "wb.panel.settings['task']")
    expect(page.locator(".ll-header, .ll-workbench").first).to_contain_text(EVIL_NAME)
    button(page, "Start").click()
    state(page, "done")
    expect(page.locator(".ll-delta-spectrum .js-plotly-plot").first).to_be_visible(timeout=60_000)

    button(page, "Compare").click()
    expect(page.locator(".ll-try[data-ll-state=done]")).to_be_visible(timeout=60_000)
    assert page.locator(".ll-try-prompt").input_value() == EVIL_TEXT

    open_history(page)
    row = page.locator(".ll-past-row[data-run]").first
    expect(row).to_contain_text(EVIL_NAME)
    expect(row).to_contain_text(EVIL_TEXT)
    run = row.get_attribute("data-run") or ""
    page.get_by_role("checkbox", name=f"compare {run}").check()
    button(page, f"Show {run}").click()
    expect(page.locator(".ll-past-samples")).to_contain_text(EVIL_TEXT)
    button(page, "Write the report").click()
    expect(page.locator(".ll-past-facts")).to_contain_text("report.html", timeout=60_000)
    button(page, "Take it to a cluster").click()
    strip = page.locator(".ll-run").get_by_role("alert")
    expect(strip).to_contain_text(f"{EVIL_NAME} is a model of your own, which no file can name")

    page.get_by_role("button", name="Open the analysis").click()
    for title in ("Spectrum", "Over steps", "Across runs"):
        page.get_by_role("tab", name=title).click()
        expect(page.locator(".ll-lab[data-ll-state=rest]")).to_be_visible(timeout=60_000)
        expect(page.locator(".ll-laboratory .js-plotly-plot")).to_have_count(1, timeout=60_000)
    notebook.run(1)
    expect(notebook.cell(1)).to_contain_text(EVIL_NAME)
    assert page.locator(".ll-workbench script, .ll-workbench img").count() == 0
    assert notebook.cell(1).locator("script, img").count() == 0
    page.wait_for_timeout(500)  # an image that cannot be loaded tells so a little later
    assert page.evaluate("() => window.hacked") is None

    report = lab.folder / "runs" / run / "report.html"
    page.goto(report.as_uri())
    expect(page.locator("h1")).to_contain_text(EVIL_NAME)
    expect(page.get_by_text(EVIL_TEXT).first).to_be_visible()
    assert page.locator(f"img[src=x], script:text-is('{EVIL_NAME}')").count() == 0
    page.wait_for_timeout(500)
    assert page.evaluate("() => window.hacked") is None
