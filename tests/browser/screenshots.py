"""Pictures of the real workbench, trained in a real JupyterLab: `make screenshot`.

Writes workbench-light.png and workbench-dark.png; with --narrow also 600 px wide ones.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.chromium import LAUNCH_ARGS, MISSING, find
from tests.browser.lab import JupyterLab

PATIENCE = 900  # seconds for whatever is waited for: on a machine at work all of it comes late
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
CELL = """\
from lora_lab_widgets import Workbench
wb = Workbench({model!r}, max_steps={steps})
wb"""
PAINT = """\
import lora_lab as ll
wb.config = wb.config.replace(
    target_modules=["q", "v"] + [f"model.layers.{n}.mlp.down_proj" for n in range(20, 30)],
    rank_pattern={r"^model\\.layers\\.[0-7]\\..*": 4, "down": 16})"""


def main() -> None:
    """Train a little in each theme and take the pictures half-way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--until", type=int, default=24, help="the step to take the picture at")
    parser.add_argument("--narrow", action="store_true", help="also 600 px wide")
    parser.add_argument("--theme", choices=THEMES, action="append")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        path = find(playwright.chromium.executable_path)
        if path is None:
            raise SystemExit(MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_ARGS))
        for theme in args.theme or THEMES:
            with JupyterLab(Path(scratch) / theme, THEMES[theme]) as lab:
                _take(browser, lab, theme, args)
        browser.close()


def _take(browser: Browser, lab: JupyterLab, theme: str, args: argparse.Namespace) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 2000}, device_scale_factor=1.5)
    context.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    page = context.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    cells = [CELL.format(model=args.model, steps=args.steps), PAINT]
    notebook = lab.open(page, cells, seconds=PATIENCE)
    page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
    notebook.run(0, seconds=PATIENCE)
    notebook.run(1, seconds=PATIENCE)
    bench = page.locator(".ll-workbench").first
    bench.get_by_role("button", name="Start", exact=True).click()
    _wait_for_step(page, ".ll-run", r"step\s+(\d+) /", args.until)
    _wait_for_step(page, ".ll-delta-head", r"step (\d+) ·", args.until - 4)
    expect(bench.locator(".ll-delta-spectrum .js-plotly-plot")).to_be_visible()
    bench.screenshot(path=args.folder / f"workbench-{theme}.png")
    if args.narrow:
        page.set_viewport_size({"width": 700, "height": 2600})
        _settle(page)
        bench.screenshot(path=args.folder / f"workbench-{theme}-600.png")
    context.close()


def _wait_for_step(page: Page, place: str, pattern: str, step: int) -> None:
    """Wait until the first of such places tells that step, or a later one."""
    page.wait_for_function(
        """([place, pattern, step]) => {
            const told = document.querySelector(place)?.innerText.match(pattern);
            return told && Number(told[1]) >= step;
        }""",
        arg=[place, pattern, step],
    )


def _settle(page: Page) -> None:
    """Wait until what follows another width has been drawn: two frames in which nothing moves."""
    page.wait_for_function(
        """() => new Promise(resolve => {
            const place = () => [...document.querySelectorAll(".ll-workbench, .ll-workbench svg")]
                .map(node => Object.values(node.getBoundingClientRect().toJSON())).join();
            const before = place();
            requestAnimationFrame(() => requestAnimationFrame(() => resolve(place() === before)));
        })"""
    )


if __name__ == "__main__":
    main()
