"""Opening notebook 00 until ΔW is seen to grow: a fresh kernel, a real JupyterLab and a Chromium.

The embedded model has been loaded before, the server runs. Three clicks: Run on the notebook's
first text, Run on its first cell, Start. ΔW has grown when the page has said two norms of it, the
second larger, beside a figure of its spectrum. Two rounds take about 100 s.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import Row, print_table

REACH_S = 60
NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "00_workbench.ipynb"
RUN = "[data-command='notebook:run-cell-and-select-next'], [data-jp-item-name='run']"
NORM = re.compile(r"step (\d+) · ‖ΔW‖ ([\d.e+-]+)")
SHOWN = ".ll-delta-spectrum .js-plotly-plot"
STAGES = (
    "the notebook is there, its kernel idle",
    "the workbench is on the page",
    "the run is at its first step",
    "ΔW's spectrum is on the page",
    "ΔW has grown",
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args(argv)
    try:
        from playwright.sync_api import sync_playwright

        from tests.browser.chromium import LAUNCH_ARGS, MISSING, find
        from tests.browser.lab import JupyterLab
    except ImportError as error:
        sys.exit(f"this benchmark drives JupyterLab; install the extra `test` ({error})")

    import lora_lab as ll

    ll.load_model("smollm2-135m", device="cpu")  # into the cache
    rounds = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        path = find(playwright.chromium.executable_path)
        if path is None:
            sys.exit(MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_ARGS))
        with JupyterLab(Path(scratch)) as lab:
            for _ in range(args.rounds):
                shutil.copy(NOTEBOOK, scratch)
                page = browser.new_context(viewport={"width": 1400, "height": 1500}).new_page()
                page.set_default_timeout(180_000)
                page.on("dialog", lambda dialog: dialog.accept())
                rounds.append(opened(lab, page))
                page.context.close()
                lab.shut_down_kernels()
        browser.close()
    print_table("Notebook 00, from its opening to a ΔW that grows", rows(rounds))


def opened(lab: Any, page: Any) -> list[float]:
    """Do what a newcomer does; return when each stage was reached, in seconds."""
    from playwright.sync_api import expect

    start, reached = time.perf_counter(), []

    def stage() -> None:
        reached.append(time.perf_counter() - start)

    lab.visit(page, NOTEBOOK.name)
    stage()
    run = page.locator(RUN).first
    run.click()
    run.click()
    begin = page.locator(".ll-workbench").get_by_role("button", name="Start").first
    expect(begin).to_be_enabled(timeout=180_000)
    stage()
    begin.click()
    step = page.locator(".ll-run[data-ll-step]:not([data-ll-step='0']):not([data-ll-step=''])")
    step.first.wait_for()
    stage()
    page.locator(SHOWN).first.wait_for()
    stage()
    norms: list[float] = []
    while len(norms) < 2 or norms[-1] <= norms[0]:
        said = NORM.search(page.locator(".ll-delta-head").first.inner_text())
        if said and float(said[2]) not in norms:
            norms.append(float(said[2]))
        page.wait_for_timeout(100)
    stage()
    return reached


def rows(rounds: list[list[float]]) -> list[Row]:
    """Return the table: each stage's time after the one before, and the whole."""
    found = []
    for place, what in enumerate(STAGES):
        times = [each[place] - (each[place - 1] if place else 0.0) for each in rounds]
        found.append(Row(what, f"+{statistics.median(times):.1f} s", "", None))
    whole = [each[-1] for each in rounds]
    note = f"three clicks; median of {len(whole)}, {min(whole):.1f} to {max(whole):.1f} s"
    median = statistics.median(whole)
    return [*found, Row("all of it", f"{median:.1f} s", f"≤ {REACH_S} s", median <= REACH_S, note)]


if __name__ == "__main__":
    main()
