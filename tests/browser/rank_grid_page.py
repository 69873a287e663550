"""A page with a rank grid of made-up layers, and the words to talk about it."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Locator

from lora_lab_widgets.rank_grid import RankGrid
from tests.browser.esm import EsmPage

ROLES = ["q", "k", "v", "o", "up"]
SHAPES = {"q": [64, 64], "k": [16, 64], "v": [16, 64], "o": [64, 64], "up": [128, 64]}
MISSING = (2, "k")  # layer 2 has no k


def site(row: int, role: str) -> str:
    return f"layers.{row}.{role}"


def column(role: str, rank: int, rows: int = 6) -> dict[str, int]:
    return {site(row, role): rank for row in range(rows) if (row, role) != MISSING}


def grid(rows: int = 6, **settings: Any) -> RankGrid:
    cells = [
        {"row": row, "role": role, "site": site(row, role), "shape": shape, "max_rank": min(shape)}
        for row in range(rows)
        for role, shape in SHAPES.items()
        if (row, role) != MISSING
    ]
    labels = [str(row) for row in range(rows)]
    return RankGrid(rows=labels, roles=ROLES, cells=cells, **{"bench": "b1", **settings})


class Grid:
    """A page with a rank grid, and the words to talk about it."""

    def __init__(self, esm: EsmPage) -> None:
        self.esm = esm
        self.page = esm.page

    def cell(self, row: int, role: str, view: int = 0) -> Locator:
        place = f'[data-row="{row}"][data-column="{ROLES.index(role)}"]'
        return self.esm.view(view).locator(place)

    def header(self, role: str) -> Locator:
        return self.esm.view().get_by_role("columnheader", name=role, exact=True)

    def layer(self, row: int) -> Locator:
        return self.esm.view().get_by_role("rowheader", name=str(row), exact=True)

    def button(self, name: str) -> Locator:
        return self.esm.view().get_by_role("button", name=name)

    def focus(self, row: int, role: str) -> None:
        self.cell(row, role).focus()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def middle(self, row: int, role: str) -> tuple[float, float]:
        box = self.cell(row, role).bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, *places: tuple[int, str], release: bool = True) -> None:
        self.page.mouse.move(*self.middle(*places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*self.middle(*place), steps=3)
        if release:
            self.page.mouse.up()

    def shown(self, view: int = 0) -> dict[str, int]:
        """The ranks that people see, read from the cells' text."""
        texts = (
            self.esm.view(view)
            .locator('[role="gridcell"]')
            .evaluate_all(
                "nodes => nodes.map(n => [+n.dataset.row, +n.dataset.column, n.textContent])"
            )
        )
        return {site(row, ROLES[col]): int(text) for row, col, text in texts if text}

    @property
    def ranks(self) -> dict[str, int]:
        assert self.shown() == self.esm.get("ranks")
        return self.shown()

    def note(self) -> str:
        return self.esm.view().locator(".ll-rank-note").inner_text()

    def about(self) -> str:
        return self.esm.view().locator(".ll-rank-line").first.inner_text()
