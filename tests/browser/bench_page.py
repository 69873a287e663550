"""What tests do with a workbench that a page shows."""

from __future__ import annotations

import re
import time

from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import JupyterLab, Notebook, small_bench


def show(
    lab: JupyterLab, page: Page, *cells: str, steps: int = 400, hurries: bool = False
) -> Notebook:
    """Run a cell that shows a workbench; `cells` come below it."""
    notebook = lab.open(page, [small_bench(steps, hurries), *cells])
    notebook.run(0, seconds=120)
    expect(page.locator(".ll-workbench").first).to_be_visible()
    return notebook


def wait_for_state(page: Page, *wanted: str, seconds: float = 60) -> None:
    """Wait until the run's state is one of these."""
    pattern = re.compile("|".join(wanted))
    expect(page.locator(".ll-run").first).to_have_attribute(
        "data-ll-state", pattern, timeout=seconds * 1000
    )


def button(page: Page, name: str) -> Locator:
    """Return a button of the first workbench whose words begin so: "what is …?" may hold them."""
    begins = re.compile("^" + re.escape(name).replace("/", r"\/"))
    return page.locator(".ll-workbench").first.get_by_role("button", name=begins)


def wait_for_step(page: Page, step: int, seconds: float = 60) -> None:
    """Wait until the page shows that step."""
    deadline = time.monotonic() + seconds
    while step_of(page) < step:
        assert time.monotonic() < deadline, f"step {step_of(page)} after {seconds} s"
        page.wait_for_timeout(100)


def live_on(page: Page) -> None:
    """See some more steps, each told by an answer of its own."""
    for _ in range(3):
        wait_for_step(page, step_of(page) + 1)


def step_of(page: Page) -> int:
    """Return the step that the page shows."""
    return int(page.locator(".ll-run").first.get_attribute("data-ll-step") or 0)
