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


@pytest.fixture
def esm_page(chromium: Browser) -> Iterator[Callable[..., EsmPage]]:
    """Return a maker of pages; a page whose script failed fails the test."""
    made: list[EsmPage] = []
    contexts = []

    def make(
        panel: Any,
        state: dict[str, Any] | None = None,
        *,
        views: int = 1,
        width: int = 1000,
        height: int = 900,
        theme: str = "light",
        touch: bool = False,
    ) -> EsmPage:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = EsmPage(context.new_page(), *assets(panel, state))
        page.theme(theme)
        for _ in range(views):
            page.add_view()
        made.append(page)
        return page

    yield make
    errors = [error for page in made for error in page.errors]
    for context in contexts:
        context.close()
    assert not errors, errors


@pytest.fixture
def open_grid(esm_page: Callable[..., EsmPage]) -> Callable[..., Grid]:
    def make(*, views: int = 1, rows: int = 6, page: dict[str, Any] | None = None, **settings: Any):
        return Grid(esm_page(grid(rows, **settings), views=views, **(page or {})))

    return make
