"""A Chromium and a JupyterLab for the browser tests, and pages with a panel's ES module in them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.esm import EsmPage, assets, launch
from tests.browser.kept import KEPT
from tests.browser.lab import JupyterLab, Notebook
from tests.browser.rank_grid_page import Grid, grid

# A kernel on a busy machine answers when it can; what has happened is seen at once all the same.
expect.set_options(timeout=30_000)
OF_THE_LAB = {"jupyter.log", "test.ipynb"}


@contextlib.contextmanager
def _chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright.chromium)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chromium() -> Browser:
    """Return the Chromium that all modules have; what a module opens there it closes."""
    browser: Browser = KEPT.get("chromium", _chromium)
    return browser


class LabPages:
    """A page at the lab, and the next one when that was closed."""

    def __init__(self, chromium: Browser) -> None:
        self._chromium = chromium
        self._page: Page | None = None

    def get(self) -> Page:
        if self._page is None:
            context = self._chromium.new_context()
            context.set_default_timeout(30_000)
            self._page = context.new_page()
            # Leaving a notebook with a running kernel asks; a test never wants to stay.
            self._page.on("dialog", lambda dialog: dialog.accept())
        else:
            self._page.evaluate("() => jupyterapp.shell.expandLeft()")
        self._page.set_viewport_size({"width": 1400, "height": 1500})
        return self._page

    def close(self) -> None:
        if self._page is not None:
            self._page.context.close()
        self._page = None


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterLab]:
    """Return a JupyterLab whose folder has nothing in it but the notebook on show, if any."""
    lab: JupyterLab = KEPT.get("lab", lambda: JupyterLab(tmp_path_factory.mktemp("lab")))
    yield lab
    for left in lab.folder.iterdir():
        if left.is_dir() and not left.name.startswith("."):
            shutil.rmtree(left)
        elif left.is_file() and left.name not in OF_THE_LAB:
            left.unlink()


@pytest.fixture(scope="module")
def lab_pages(chromium: Browser) -> LabPages:
    """Return the pages that the tests have at the lab, one after the other."""
    pages: LabPages = KEPT.get("lab pages", lambda: contextlib.closing(LabPages(chromium)))
    return pages


@pytest.fixture
def fresh_kernel(lab: JupyterLab, lab_pages: LabPages) -> None:
    """See to it that this test's page is the first that its kernel knows; ask before `page`."""
    lab_pages.close()
    lab.shut_down_kernels()


@pytest.fixture
def page(lab: JupyterLab, lab_pages: LabPages) -> Iterator[Page]:
    """Return a page for the lab: the last test's, with its kernel, if that left both at rest."""
    page = lab_pages.get()
    yield page
    if not Notebook(page).clear():
        lab_pages.close()
        lab.shut_down_kernels()


@pytest.fixture(scope="module")
def blank_pages(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Return a maker of blank pages, each of a context of its own, where nothing is left behind."""
    made = []

    def make(**options: Any) -> Page:
        context = chromium.new_context(**options)
        made.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(10_000)
        return context.new_page()

    yield make
    for context in chromium.contexts:
        if context in made:
            context.close()


@pytest.fixture(scope="module")
def resting_pages() -> list[Page]:
    """Hold the pages that no test has; a new one would cost five times what a new document does."""
    return []


@pytest.fixture
def esm_page(
    blank_pages: Callable[..., Page], resting_pages: list[Page]
) -> Iterator[Callable[..., EsmPage]]:
    """Return a maker of pages; a page whose script failed fails the test.

    A page is a new document in a tab that other tests had before; a `touch` page is a new tab, and
    so is a `fresh` one, for what outlives a document, as Playwright's clock does.
    """
    made: list[EsmPage] = []
    lent: list[Page] = []

    def make(
        panel: Any,
        state: dict[str, Any] | None = None,
        *,
        views: int = 1,
        width: int = 1000,
        height: int = 900,
        theme: str = "light",
        touch: bool = False,
        fresh: bool = False,
    ) -> EsmPage:
        size = {"width": width, "height": height}
        if touch or fresh:
            tab = blank_pages(viewport=size, has_touch=touch, is_mobile=touch)
        else:
            tab = resting_pages.pop() if resting_pages else blank_pages()
            tab.set_viewport_size(size)
            lent.append(tab)
        page = EsmPage(tab, *assets(panel, state))
        page.theme(theme)
        for _ in range(views):
            page.add_view()
        made.append(page)
        return page

    yield make
    errors = [error for page in made for error in page.errors]
    for page in made:
        if page.page in lent:
            page.let_go()
            resting_pages.append(page.page)
        else:
            page.page.context.close()
    assert not errors, errors


@pytest.fixture
def open_grid(esm_page: Callable[..., EsmPage]) -> Callable[..., Grid]:
    def make(*, views: int = 1, rows: int = 6, page: dict[str, Any] | None = None, **settings: Any):
        return Grid(esm_page(grid(rows, **settings), views=views, **(page or {})))

    return make
