"""A Chromium for each test module, and pages with a panel's ES module in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.esm import EsmPage, assets, launch
from tests.browser.lab import JupyterLab
from tests.browser.rank_grid_page import Grid, grid

# A kernel on a busy machine answers when it can; what has happened is seen at once all the same.
expect.set_options(timeout=30_000)


# Not for the whole session: while Playwright is up, no other test can run an asyncio loop.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright.chromium)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JupyterLab]:
    """Return a JupyterLab of the module's own."""
    with JupyterLab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def page(lab: JupyterLab, chromium: Browser) -> Iterator[Page]:
    """Return a page for the lab; its kernels end with the test."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1500})
    context.set_default_timeout(30_000)
    page = context.new_page()
    # Leaving a notebook with a running kernel asks; a test never wants to stay.
    page.on("dialog", lambda dialog: dialog.accept())
    yield page
    context.close()
    lab.shut_down_kernels()


@pytest.fixture(scope="module")
def blank_pages(chromium: Browser) -> Callable[..., Page]:
    """Return a maker of blank pages, each of a context of its own, where nothing is left behind."""

    def make(**options: Any) -> Page:
        context = chromium.new_context(**options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(10_000)
        return context.new_page()

    return make


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
