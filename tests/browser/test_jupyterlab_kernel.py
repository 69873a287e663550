"""A kernel that goes while JupyterLab shows its workbench: the page says so, and then goes on."""

from __future__ import annotations

import pytest
from playwright.sync_api import ConsoleMessage, Page, expect

from tests.browser.bench_page import button, live_on, show, wait_for_state
from tests.browser.lab import JupyterLab

PANELS = 13  # that the workbench has, its pickers too, each with a line of its own
REMEDY = "this is its last state · run the cell again; your runs are under Runs"
# Ends the kernel as a lack of memory does, when the cell that asks for it has its answer.
DIE = "import os, threading; threading.Timer(0.1, os.kill, (os.getpid(), 9)).start()"
# The sign of a broken chain before a widget, where one is to be seen.
BROKEN = """nodes => nodes.map(node => getComputedStyle(node, "::before"))
    .filter(({ content, display }) => content !== "none" && display !== "none")"""
# What the browser itself says where a socket ends; no script of the page can keep it quiet.
OF_THE_BROWSER = ("WebSocket connection to", "Failed to load resource")


def own_errors(page: Page) -> list[str]:
    """Collect what goes wrong in the page from now on."""
    errors: list[str] = []

    def note(line: ConsoleMessage) -> None:
        if line.type == "error" and not line.text.startswith(OF_THE_BROWSER):
            errors.append(line.text)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


def told_by_every_panel(page: Page, how: str) -> None:
    """See every panel say how the kernel went, around a picture of what was last seen."""
    lines = page.locator(".ll-gone")
    expect(lines).to_have_count(PANELS)
    expect(lines.first).to_have_text(f"{how}: {REMEDY}")
    assert len(set(lines.all_inner_texts())) == 1
    assert page.locator(".jupyter-widgets-disconnected").evaluate_all(BROKEN) == []
    expect(page.locator(".ll-run-step")).to_contain_text("100,000")


@pytest.mark.browser
@pytest.mark.usefixtures("fresh_kernel")
def test_a_kernel_that_has_gone_is_told_by_every_panel(lab: JupyterLab, page: Page) -> None:
    notebook = show(lab, page, DIE, steps=100_000)
    errors = own_errors(page)
    start(page)
    notebook.start(1)
    told_by_every_panel(page, "the kernel died and was started anew")
    page.locator(".jp-Dialog button").last.click()  # JupyterLab's own word that it died
    notebook.wait_until_ready()
    notebook.run(0, seconds=120)
    expect(page.locator(".ll-gone")).to_have_count(0)
    start(page)
    notebook.restart()
    told_by_every_panel(page, "the kernel was restarted")
    assert errors == []


def start(page: Page) -> None:
    """Start a run, and see it go on."""
    button(page, "Start").click()
    wait_for_state(page, "running")
    live_on(page)
