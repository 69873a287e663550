"""Panels' ES modules in a real Chromium, without Jupyter: a blank page and a fake model.

A test asks the fixture ``esm_page`` for a page::

    esm = esm_page(RankGrid(rank=4))                  # a panel: its module, style and traits
    esm = esm_page("rank_grid", {"rank": 4})          # or file stems and a state
    esm.page.get_by_role("gridcell").first.click()
    assert esm.saves() == [{"ranks": {...}}]          # what Python would have received
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserType, ConsoleMessage, Error, Locator, Page

from lora_lab_widgets import panel as panels
from tests.browser.chromium import LAUNCH_ARGS, MISSING, find

BLANK = "http://localhost/blank"  # never fetched; localhost, so that the clipboard API exists
BLANK_HTML = (
    "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'><body>"
)

FAKE_MODEL = (Path(__file__).parent / "fake_model.js").read_text(encoding="utf-8")


def launch(playwrights: BrowserType) -> Browser:
    """Start $CHROMIUM, else the system's Chromium, else Playwright's own; or skip, aloud."""
    path = find(playwrights.executable_path)
    if path is None:
        pytest.skip(MISSING)
    return playwrights.launch(executable_path=path, args=list(LAUNCH_ARGS))


class EsmPage:
    """One page with one fake model and any number of views of it."""

    def __init__(self, page: Page, esm: str, css: str, state: dict[str, Any]) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", self._failed)
        page.on("console", self._said)
        page.route(
            BLANK,
            lambda route: route.fulfill(content_type="text/html", body=BLANK_HTML),
        )
        page.goto(BLANK)
        page.add_style_tag(content=css)
        page.add_script_tag(content=FAKE_MODEL)
        page.evaluate("([esm, state]) => lab.start(esm, state)", [esm, state])

    def _failed(self, error: Error) -> None:
        self.errors.append(str(error))

    def _said(self, line: ConsoleMessage) -> None:
        if line.type == "error":
            self.errors.append(line.text)

    def let_go(self) -> None:
        """Leave the page as another test may have it: nothing pressed, nobody listening."""
        self.page.remove_listener("pageerror", self._failed)
        self.page.remove_listener("console", self._said)
        self.page.unroute_all()
        self.page.emulate_media(color_scheme="light")
        self.page.mouse.up()
        self.page.mouse.move(0, 0)

    def add_view(self) -> Locator:
        """Render one more view at the page's end; return its element."""
        index = self.page.evaluate("() => lab.addView()")
        return self.view(index)

    def view(self, index: int = 0) -> Locator:
        """Return the element that view `index` was rendered into."""
        return self.page.locator(f'[data-view="{index}"]')

    def remove_view(self, index: int = 0, by: str = "both") -> None:
        """Take a view away: by its cleanup function, by aborting its signal, or both."""
        self.page.evaluate("([index, by]) => lab.removeView(index, by)", [index, by])

    def get(self, name: str) -> Any:
        """Return a trait as the browser's model has it."""
        return self.page.evaluate("name => lab.state[name]", name)

    def set(self, **state: Any) -> None:
        """Change traits as Python would, all in one message."""
        self.page.evaluate("state => lab.receive(state)", state)

    def receive(self, content: Any) -> None:
        """Deliver a custom message from Python."""
        self.page.evaluate("content => lab.message(content)", content)

    def kernel(self, signal: str, news: Any) -> None:
        """Have one of the session's signals tell what befell the kernel, as JupyterLab does."""
        self.page.evaluate("([signal, news]) => lab.kernel(signal, news)", [signal, news])

    def saves(self) -> list[dict[str, Any]]:
        """Return the states that `save_changes` sent to Python, oldest first."""
        return self.page.evaluate("() => lab.saves")

    def sent(self) -> list[Any]:
        """Return the custom messages sent to Python, oldest first."""
        return self.page.evaluate("() => lab.sent")

    def clear_log(self) -> None:
        """Forget what was saved, sent and dispatched so far."""
        self.page.evaluate("() => lab.clearLog()")

    def watch(self, event: str) -> None:
        """Record `event` wherever it is dispatched on the document; read with `events`."""
        self.page.evaluate("event => lab.watch(event)", event)

    def events(self) -> list[Any]:
        """Return the `detail` of every watched event so far."""
        return self.page.evaluate("() => lab.events")

    def open_ends(self) -> dict[str, int]:
        """Count what is still held: listeners on model, document and window; running intervals."""
        return self.page.evaluate("() => lab.openEnds()")

    def theme(self, name: str, host: str = "jupyter") -> None:
        """Switch the host's theme: host "jupyter", "colab", "vscode" or "none" (the system's)."""
        self.page.emulate_media(color_scheme=name if host == "none" else None)
        self.page.evaluate("([name, host]) => lab.theme(name, host)", [name, host])

    def screenshot(self, path: Path) -> None:
        """Write a PNG of the whole page."""
        self.page.screenshot(path=path, full_page=True)


def assets(panel: Any, state: dict[str, Any] | None) -> tuple[str, str, dict[str, Any]]:
    """Return the module, the style sheet and the JSON state for a panel or a file stem."""
    if isinstance(panel, str):
        return *panels.assets(panel), state or {}
    private = {"layout", "tabbable", "tooltip"}
    traits = {
        name: value
        for name, value in panel.get_state().items()
        if not name.startswith("_") and name not in private
    }
    return panel._esm, panel._css, {**traits, **(state or {})}
