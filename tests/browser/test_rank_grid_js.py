"""The rank grid's ES module, in a real Chromium, with a fake model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from lora_lab_widgets.rank_grid import RankGrid
from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser

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


@pytest.fixture
def open_grid(esm_page: Callable[..., EsmPage]) -> Callable[..., Grid]:
    def make(*, views: int = 1, rows: int = 6, page: dict[str, Any] | None = None, **settings: Any):
        return Grid(esm_page(grid(rows, **settings), views=views, **(page or {})))

    return make


def test_click_toggles_between_nothing_and_the_brush(open_grid) -> None:
    g = open_grid(rank=4)
    g.cell(1, "q").click()
    assert g.ranks == {site(1, "q"): 4}
    g.cell(1, "q").click()
    assert g.ranks == {}


def test_click_gives_another_rank_the_brush_before_it_erases(open_grid) -> None:
    g = open_grid(rank=4, ranks={site(1, "q"): 8})
    g.cell(1, "q").click()
    assert g.ranks == {site(1, "q"): 4}


def test_drag_paints_what_the_first_cell_decides_and_saves_once(open_grid) -> None:
    g = open_grid(ranks={site(3, "q"): 8})
    g.esm.watch("lora-lab:ranks")
    g.drag((0, "q"), (5, "q"), release=False)
    assert g.shown() == column("q", 8)
    assert g.esm.saves() == []
    assert g.esm.get("ranks") == {site(3, "q"): 8}
    assert g.esm.events()[-1] == {"bench": "b1", "ranks": column("q", 8)}
    g.page.mouse.up()
    assert g.esm.saves() == [{"ranks": column("q", 8), "selected": site(0, "q")}]
    g.page.wait_for_timeout(300)  # nor does a late save of the selection follow
    assert len(g.esm.saves()) == 1
    g.drag((5, "q"), (2, "q"))
    assert g.ranks == {site(0, "q"): 8, site(1, "q"): 8}


def test_a_quick_hand_leaves_no_holes(open_grid) -> None:
    g = open_grid()
    g.page.mouse.move(*g.middle(0, "v"))
    g.page.mouse.down()
    g.page.mouse.move(*g.middle(5, "v"), steps=1)
    g.page.mouse.up()
    assert g.ranks == column("v", 8)


def test_painting_skips_what_is_not_there(open_grid) -> None:
    g = open_grid()
    missing = g.cell(*MISSING)
    expect(missing).to_have_attribute("aria-disabled", "true")
    expect(missing).to_have_attribute("aria-label", "layer 2 k: no such matrix")
    missing.click(force=True)
    assert g.ranks == {}
    assert g.note() == "no matrix here to adapt"
    g.drag((0, "k"), (5, "k"))
    assert g.ranks == column("k", 8)
    assert site(*MISSING) not in g.ranks


def test_the_page_knows_which_ranks_are_shown(open_grid) -> None:
    shown = """() => globalThis[Symbol.for("lora-lab:grids")].get("b1")?.ranks"""
    g = open_grid(ranks={site(0, "q"): 8})
    g.cell(1, "v").click()
    assert g.page.evaluate(shown) == g.ranks == {site(0, "q"): 8, site(1, "v"): 8}
    g.esm.set(ranks={site(2, "o"): 4})  # from Python
    assert g.page.evaluate(shown) == {site(2, "o"): 4}


def test_escape_gives_a_stroke_up(open_grid) -> None:
    g = open_grid(ranks={site(0, "o"): 2})
    g.drag((0, "q"), (4, "q"), release=False)
    g.press("Escape")
    assert g.shown() == {site(0, "o"): 2}
    g.page.mouse.up()
    assert g.ranks == {site(0, "o"): 2}
    expect(g.button("undo")).to_have_attribute("aria-disabled", "true")


def test_headers_fill_and_clear(open_grid) -> None:
    g = open_grid()
    g.header("k").click()
    assert g.ranks == column("k", 8)
    g.layer(2).click()
    assert g.ranks == {**column("k", 8), **{site(2, r): 8 for r in ["q", "v", "o", "up"]}}
    g.header("k").click()
    assert g.ranks == {site(2, r): 8 for r in ["q", "v", "o", "up"]}


def test_arrows_rove_with_one_tab_stop(open_grid) -> None:
    g = open_grid()
    g.focus(0, "q")
    g.press("ArrowDown", "ArrowRight", "ArrowRight")
    expect(g.cell(1, "v")).to_be_focused()
    g.press("End")
    expect(g.cell(1, "up")).to_be_focused()
    g.press("Home")
    expect(g.cell(1, "q")).to_be_focused()
    g.press("Control+End")
    expect(g.cell(5, "up")).to_be_focused()
    g.press("Control+Home", "ArrowUp")
    expect(g.header("q")).to_be_focused()
    g.press("ArrowLeft", "ArrowDown", "ArrowLeft")
    expect(g.layer(0)).to_be_focused()
    assert g.esm.view().locator('[role="grid"] [tabindex="0"]').count() == 1
    assert g.esm.get("ranks") == {}


def test_selected_follows_the_focus_and_is_saved_after_a_rest(open_grid) -> None:
    g = open_grid()
    g.focus(0, "q")
    g.press("ArrowRight", "ArrowRight", "ArrowDown")
    assert g.esm.get("selected") == site(1, "v")
    g.page.wait_for_timeout(300)
    assert g.esm.saves()[-1] == {"selected": site(1, "v")}


def test_space_and_enter_toggle(open_grid) -> None:
    g = open_grid()
    g.focus(3, "o")
    g.press("Space")
    assert g.ranks == {site(3, "o"): 8}
    g.press("Enter")
    assert g.ranks == {}
    g.press("Home", "ArrowLeft", "Enter")  # on the row's header
    assert g.ranks == {site(3, role): 8 for role in ROLES}


@pytest.mark.parametrize(
    ("keys", "rank"), [("7", 7), ("16", 16), ("32", 32), ("64", 64), ("10", 10), ("05", 5)]
)
def test_quick_digits_make_one_number_and_one_step(open_grid, keys: str, rank: int) -> None:
    g = open_grid(ranks={site(0, "q"): 2})
    g.focus(0, "q")
    g.press(*keys)
    assert g.ranks == {site(0, "q"): rank}
    if keys[0] != "0":
        g.press("Control+z")
        assert g.ranks == {site(0, "q"): 2}


def test_typing_over_the_same_first_digit_can_be_undone(open_grid) -> None:
    g = open_grid(ranks={site(0, "q"): 1})
    g.focus(0, "q")
    g.press("1", "6")
    assert g.ranks == {site(0, "q"): 16}
    g.press("Control+z")
    assert g.ranks == {site(0, "q"): 1}
    g.press("6", "-", "4")  # other keys end the number
    assert g.ranks == {site(0, "q"): 4}


def test_slow_digits_are_two_numbers(open_grid) -> None:
    g = open_grid()
    g.focus(0, "q")
    g.press("1")
    g.page.wait_for_timeout(700)
    g.press("6")
    assert g.ranks == {site(0, "q"): 6}


def test_digits_do_not_run_on_into_the_next_cell(open_grid) -> None:
    g = open_grid()
    g.focus(0, "q")
    g.press("1", "ArrowDown", "6")
    assert g.ranks == {site(0, "q"): 1, site(1, "q"): 6}


@pytest.mark.parametrize("key", ["0", "Delete", "Backspace"])
def test_clearing_keys(open_grid, key: str) -> None:
    g = open_grid(ranks=column("q", 8))
    g.focus(0, "q")
    g.press(key)
    assert g.ranks == {k: v for k, v in column("q", 8).items() if k != site(0, "q")}


def test_plus_and_minus_walk_the_usual_ranks(open_grid) -> None:
    g = open_grid()
    g.focus(0, "q")
    seen = []
    for _ in range(8):
        g.press("+")
        seen.append(g.ranks[site(0, "q")])
    assert seen == [1, 2, 4, 8, 16, 32, 64, 64]
    assert "capped at 64" in g.note()
    g.press("1", "2", "-")
    assert g.ranks == {site(0, "q"): 8}
    g.press("-", "-", "-", "-")
    assert g.ranks == {}


def test_a_rank_above_the_matrix_is_capped_and_says_so(open_grid) -> None:
    g = open_grid(rank=32)
    g.cell(0, "k").click()
    assert g.ranks == {site(0, "k"): 16}
    assert g.note() == "capped at 16 = min(out, in)"
    g.cell(0, "k").click()  # capped or not, it has the brush's rank: erase
    assert g.ranks == {}


def test_shift_selects_and_keys_act_on_all(open_grid) -> None:
    g = open_grid()
    g.focus(1, "k")
    g.press("Shift+ArrowDown", "Shift+ArrowRight")
    assert g.esm.view().locator(".ll-picked").count() == 3  # of 2 × 2, one is missing
    g.press("4")
    wanted = {site(1, "k"): 4, site(1, "v"): 4, site(2, "v"): 4}
    assert g.ranks == wanted
    assert g.about() == "3 matrices selected: 960 parameters, 3.75 KiB"  # 3 · 4 · (16 + 64) · 4 B
    g.press("Escape", "Delete")
    assert g.ranks == {site(1, "k"): 4, site(1, "v"): 4}
    g.press("Control+a", "+")
    assert len(g.ranks) == 29


def test_shift_click_selects(open_grid) -> None:
    g = open_grid()
    g.focus(0, "q")
    g.cell(1, "k").click(modifiers=["Shift"])
    g.press("2")
    assert g.ranks == {site(r, role): 2 for r in (0, 1) for role in "qk"}


def test_presets(open_grid) -> None:
    g = open_grid(rank=4)
    g.button("paper: q,v r=8").click()
    assert g.ranks == {**column("q", 8), **column("v", 8)}
    g.button("all linear").click()
    assert g.ranks == {k: v for role in ROLES for k, v in column(role, 4).items()}
    g.button("attention").click()
    assert g.ranks == {k: v for role in "qkvo" for k, v in column(role, 4).items()}
    g.esm.view().get_by_role("spinbutton").fill("2")
    g.button("last").click()
    assert g.ranks == {site(row, role): 4 for row in (4, 5) for role in ROLES}
    g.button("clear").click()
    assert g.ranks == {}


def test_last_layers_wants_a_number(open_grid) -> None:
    g = open_grid()
    g.esm.view().get_by_role("spinbutton").fill("0")
    g.button("last").click()
    assert g.ranks == {}
    assert "whole number" in g.note()


def test_last_layers_are_those_of_each_stack(open_grid) -> None:
    g = open_grid()
    g.esm.set(rows=["enc 0", "enc 1", "enc 2", "dec 0", "dec 1", "dec 2"])
    g.esm.view().get_by_role("spinbutton").fill("1")
    g.esm.view().get_by_role("spinbutton").press("Enter")
    assert g.ranks == {
        site(row, role): 8 for row in (2, 5) for role in ROLES if (row, role) != MISSING
    }


def test_the_paper_preset_needs_q_and_v(open_grid) -> None:
    g = open_grid()
    g.esm.set(roles=["q", "k", "query", "o", "up"], cells=[], ranks={})
    expect(g.button("paper: q,v r=8")).to_have_attribute("aria-disabled", "true")


def test_brush(open_grid) -> None:
    g = open_grid(rank=12)
    labels = g.esm.view().locator(".ll-brush").all_inner_texts()
    assert labels == ["1", "2", "4", "8", "12", "16", "32", "64"]
    g.esm.view().locator(".ll-brush", has_text="32").click()
    assert g.esm.saves() == [{"rank": 32}]
    g.cell(0, "q").click()
    assert g.ranks == {site(0, "q"): 32}


def test_undo_and_redo_go_stroke_by_stroke(open_grid) -> None:
    g = open_grid()
    g.drag((0, "q"), (5, "q"))
    g.cell(0, "o").click()
    g.button("undo").click()
    assert g.ranks == column("q", 8)
    g.press("Control+z")  # the focus is on the button
    assert g.ranks == {}
    g.press("Control+Shift+z")
    assert g.ranks == column("q", 8)
    g.press("Control+y")
    assert g.ranks == {**column("q", 8), site(0, "o"): 8}
    expect(g.button("redo")).to_have_attribute("aria-disabled", "true")
    g.button("undo").click()
    g.cell(1, "o").click()  # a new stroke ends what could be redone
    expect(g.button("redo")).to_have_attribute("aria-disabled", "true")


def test_ranks_from_python_repaint_and_can_be_undone(open_grid) -> None:
    g = open_grid(ranks={site(0, "q"): 4})
    g.esm.set(ranks={site(5, "up"): 64})
    assert g.ranks == {site(5, "up"): 64}
    assert g.esm.saves() == []
    g.button("undo").click()
    assert g.ranks == {site(0, "q"): 4}


def test_another_model_rebuilds_the_grid(open_grid) -> None:
    g = open_grid(ranks=column("q", 8))
    cell = {"row": 0, "role": "v", "site": "x", "shape": [8, 8], "max_rank": 8}
    g.esm.set(rows=["0"], roles=["v"], cells=[cell], ranks={"x": 2}, selected="")
    assert g.esm.view().locator('[role="gridcell"]').all_inner_texts() == ["2"]
    expect(g.button("undo")).to_have_attribute("aria-disabled", "true")


def test_two_views_agree_and_share_undo(open_grid) -> None:
    g = open_grid(views=2)
    g.drag((0, "q"), (3, "q"), release=False)
    assert g.shown(view=1) == g.shown(view=0) == column("q", 8, rows=4)
    g.page.mouse.up()
    expect(g.cell(0, "q", view=1)).to_have_attribute("aria-selected", "true")
    g.esm.view(1).get_by_role("button", name="undo").click()
    assert g.shown(view=1) == g.shown(view=0) == {}
    g.cell(2, "v", view=1).hover()
    assert g.esm.view(1).locator(".ll-lit").count() == 2
    assert g.esm.view(0).locator(".ll-lit").count() == 0


def test_locked_is_read_only_and_says_why(open_grid) -> None:
    g = open_grid(ranks=column("q", 8), locked=True)
    table = g.esm.view().get_by_role("grid")
    expect(table).to_have_attribute("aria-readonly", "true")
    assert g.note() == "locked while it trains"
    g.cell(0, "o").click()
    g.press("8", "+", "Delete", "Space", "Control+z")
    g.header("o").click()
    g.button("clear").click(force=True)
    assert g.ranks == column("q", 8)
    assert "stop it to change ranks" in g.note()
    assert g.esm.get("selected") == site(0, "o")
    g.esm.set(locked=False)
    assert g.note() == ""
    g.cell(0, "o").click()
    assert g.ranks == {**column("q", 8), site(0, "o"): 8}


def test_a_lock_ends_the_stroke_in_hand(open_grid) -> None:
    g = open_grid()
    g.drag((0, "q"), (4, "q"), release=False)
    g.esm.set(locked=True)
    g.page.mouse.up()
    assert g.ranks == {}


def test_labels_for_screen_readers(open_grid) -> None:
    g = open_grid(ranks={site(3, "q"): 8})
    expect(g.cell(3, "q")).to_have_attribute("aria-label", "layer 3 q rank 8")
    expect(g.cell(3, "k")).to_have_attribute("aria-label", "layer 3 k rank 0")
    table = g.esm.view().get_by_role("grid")
    assert table.get_by_role("row").count() == 7
    assert table.get_by_role("gridcell").count() == 30
    assert table.get_by_role("columnheader").count() == 6
    assert table.get_by_role("rowheader").count() == 6
    g.focus(3, "q")
    g.press("+")
    expect(g.esm.view().locator("[aria-live]")).to_have_text("layer 3 q rank 16")


def test_the_line_below_prices_a_cell(open_grid) -> None:
    g = open_grid(ranks={site(3, "v"): 8})
    g.cell(3, "v").hover()
    # 8 · (16 + 64) = 640 numbers of 4 bytes
    assert g.about() == "layer 3 · v · 16 × 64 · r 8 → 640 parameters, 2.50 KiB"
    g.cell(3, "k").hover()
    assert g.about() == "layer 3 · k · 16 × 64 · frozen, rank up to 16"


def test_nothing_moves_when_the_text_changes(open_grid) -> None:
    g = open_grid(page={"width": 430})
    bar = g.esm.view().locator(".ll-bar")
    before = bar.bounding_box(), g.cell(0, "q").bounding_box()
    g.button("all linear").click()
    g.focus(0, "k")
    g.press("6", "4")  # the longest note: capped
    after = bar.bounding_box(), g.cell(0, "q").bounding_box()
    assert before == after


@pytest.mark.parametrize("width", [1000, 600, 430])
def test_it_fits(open_grid, width: int) -> None:
    g = open_grid(rows=30, page={"width": width})
    assert g.page.evaluate("document.documentElement.scrollWidth") <= width
    box = g.cell(0, "q").bounding_box()
    below = g.cell(1, "q").bounding_box()
    assert box
    assert below
    assert below["y"] - box["y"] == pytest.approx(20, abs=0.5)
    assert box["width"] >= 26


def test_many_layers_scroll_inside_below_their_header(open_grid) -> None:
    g = open_grid(rows=96)
    scroll = g.esm.view().locator(".ll-rank-scroll")
    box = scroll.bounding_box()
    assert box
    assert box["height"] < 700
    g.focus(0, "q")
    g.press("Control+End")
    expect(g.cell(95, "up")).to_be_focused()
    expect(g.cell(95, "up")).to_be_in_viewport()
    header = g.header("q").bounding_box()
    assert header
    assert header["y"] == pytest.approx(box["y"], abs=2)


def test_the_wheel_scrolls_the_page_over_the_grid(open_grid) -> None:
    g = open_grid(rows=30, page={"height": 300})
    g.page.mouse.move(*g.middle(2, "q"))
    g.page.mouse.wheel(0, 200)
    g.page.wait_for_function("window.scrollY > 100")
    assert g.ranks == {}


@pytest.fixture
def touch(open_grid):
    g = open_grid(rows=30, page={"height": 500, "width": 430, "touch": True})
    session = g.page.context.new_cdp_session(g.page)

    def send(kind: str, point: tuple[float, float] | None = None) -> None:
        points = [{"x": point[0], "y": point[1]}] if point else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def swipe(start: tuple[float, float], by: tuple[float, float], hold_ms: int = 0) -> None:
        send("touchStart", start)
        g.page.wait_for_timeout(hold_ms)
        for i in range(1, 9):
            send("touchMove", (start[0] + by[0] * i / 8, start[1] + by[1] * i / 8))
            g.page.wait_for_timeout(16)
        send("touchEnd")

    return g, swipe


def test_a_finger_taps_to_toggle(touch) -> None:
    g, _ = touch
    g.cell(2, "q").tap()
    assert g.ranks == {site(2, "q"): 8}
    g.cell(2, "q").tap()
    assert g.ranks == {}
    box = g.cell(2, "q").bounding_box()
    assert box
    assert box["height"] >= 32


def test_a_finger_swiping_up_scrolls_the_page(touch) -> None:
    g, swipe = touch
    swipe(g.middle(10, "q"), (0, -200))
    g.page.wait_for_function("window.scrollY > 50")
    assert g.ranks == {}


def test_a_finger_swiping_sideways_paints(touch) -> None:
    g, swipe = touch
    x, _ = g.middle(4, "o")
    start = g.middle(4, "q")
    swipe(start, (x - start[0], 0))
    assert g.ranks == {site(4, role): 8 for role in "qkvo"}


def test_a_finger_that_holds_paints_downwards(touch) -> None:
    g, swipe = touch
    start, end = g.middle(4, "q"), g.middle(8, "q")
    swipe(start, (0, end[1] - start[1]), hold_ms=450)
    assert g.ranks == {site(row, "q"): 8 for row in range(4, 9)}
    assert g.page.evaluate("window.scrollY") == 0


def test_copy_waits_until_python_knows_the_ranks(open_grid) -> None:
    g = open_grid(ranks={site(0, "q"): 8}, code="old", coded_ranks={site(0, "q"): 8})
    g.button("copy as Python").click()
    expect(g.esm.view().locator(".ll-rank-note")).to_have_text("copied")
    assert g.page.evaluate("navigator.clipboard.readText()") == "old"
    g.cell(1, "q").click()
    g.button("copy as Python").click()
    assert g.note() == "waiting for the kernel…"
    g.esm.set(code="new", coded_ranks=g.ranks)
    expect(g.esm.view().locator(".ll-rank-note")).to_have_text("copied")
    assert g.page.evaluate("navigator.clipboard.readText()") == "new"


def test_copy_without_a_clipboard_api(open_grid) -> None:
    g = open_grid(code="ll.LoraConfig()")
    g.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    g.button("copy as Python").click()
    expect(g.esm.view().locator(".ll-rank-note")).to_have_text("copied")


def test_no_code_no_copy_button(open_grid) -> None:
    expect(open_grid().button("copy as Python")).to_be_hidden()


def test_handled_keys_stay_inside_and_others_pass(open_grid) -> None:
    g = open_grid()
    root = g.esm.view()
    expect(root).to_have_attribute("data-lm-suppress-shortcuts", "true")
    g.page.evaluate(
        "() => { window.got = []; document.body.addEventListener('keydown', e => got.push(e.key)) }"
    )
    g.focus(0, "q")
    g.press("ArrowDown", "8", "Delete", "Control+z", "Control+a", "Tab")
    assert g.page.evaluate("got") == ["Control", "Control", "Tab"]


def test_names_are_text_never_markup(open_grid) -> None:
    g = open_grid()
    evil = "<img src=x onerror=alert(1)>"
    cell = {"row": 0, "role": evil, "site": evil, "shape": [8, 8], "max_rank": 8}
    g.esm.set(rows=[evil], roles=[evil], cells=[cell], ranks={evil: 2}, code=evil)
    assert g.esm.view().locator("img").count() == 0
    expect(g.esm.view().get_by_role("columnheader").nth(1)).to_have_text(evil)


@pytest.mark.parametrize("by", ["cleanup", "signal", "both"])
def test_a_removed_view_leaves_nothing_behind(open_grid, by: str) -> None:
    g = open_grid()
    before = g.esm.open_ends()
    index = int(g.esm.add_view().get_attribute("data-view") or 0)
    g.esm.remove_view(index, by=by)
    assert g.esm.open_ends() == before
    assert (before["document"], before["window"], before["intervals"]) == (0, 0, 0)
    g.cell(0, "q").click()
    assert g.ranks == {site(0, "q"): 8}


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (...layers) => {  // painted over each other, as the browser does
    canvas.clearRect(0, 0, 1, 1);
    for (const c of layers) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = c => c.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = n => n ? [...ground(n.parentElement), getComputedStyle(n).backgroundColor] : [];
  return [...document.querySelectorAll('.ll-panel *')]
    .filter(n => [...n.childNodes].some(t => t.nodeType === 3 && t.data.trim()))
    .filter(n => n.checkVisibility() && !n.closest('.ll-sr, [aria-disabled=true]'))
    .map(n => {
      const behind = ground(n);
      const a = luminance(rgb(...behind, getComputedStyle(n).color));
      const b = luminance(rgb(...behind));
      return [n.textContent, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


@pytest.mark.parametrize("host", ["jupyter", "colab", "vscode", "none"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes_of_every_host(open_grid, theme: str, host: str) -> None:
    ranks = {site(i, "q"): r for i, r in enumerate([1, 2, 4, 8, 16, 32])} | {site(0, "o"): 64}
    g = open_grid(ranks=ranks, code="x")
    g.esm.theme(theme, host)
    g.cell(0, "k").click()
    g.page.mouse.move(0, 0)
    ratios = g.page.evaluate(CONTRAST)
    assert len(ratios) > 30
    assert [pair for pair in ratios if pair[1] < 4.5] == []
    background = g.page.evaluate(
        "getComputedStyle(document.querySelector('.ll-panel')).backgroundColor"
    )
    assert (background == "rgb(255, 255, 255)") == (theme == "light")


def test_of_a_method_without_ranks_the_grid_is_inert_and_focus_passes_it_by(
    esm_page: Callable[..., EsmPage],
) -> None:
    why = "BitFit trains bias vectors; the grid is LoRA's"
    panel = grid(ranks={site(0, "q"): 8}, inert=why, code="config = ll.BitFitConfig()")
    esm = esm_page(panel)
    page, box = esm.page, esm.view()
    expect(box).to_contain_text(why)
    page.keyboard.press("Tab")
    focused = page.evaluate("() => document.activeElement.textContent")
    assert focused == "copy as Python"
    height = box.bounding_box()
    cell = esm.view().locator('[data-row="1"][data-column="0"]')
    cell.click(force=True)
    assert esm.saves() == []
    esm.set(inert="")
    expect(box).not_to_contain_text(why)
    assert box.bounding_box() == height, "nothing moves"
    cell.click()
    assert esm.saves()[-1]["ranks"] == {site(0, "q"): 8, site(1, "q"): 8}


def test_live_ranks_stand_for_the_plan_until_it_is_asked_for(
    esm_page: Callable[..., EsmPage],
) -> None:
    painted = column("q", 8)
    panel = grid(ranks=painted)
    esm = esm_page(panel)
    view = esm.view()
    first = view.locator('[data-row="0"][data-column="0"]')
    box, plan_color = (
        view.bounding_box(),
        first.evaluate("node => node.style.background"),
    )
    ranks = [3 if cell["role"] == "q" else 0 for cell in panel.cells]
    text = "live ranks, step 7, budget 18 of 72"
    esm.set(locked=True, live={"ranks": ranks, "text": text})
    expect(first).to_have_text("3")
    expect(first).to_have_attribute("aria-label", "layer 0 q rank 3")
    expect(view).to_contain_text(text)
    assert first.evaluate("node => node.style.background") != plan_color
    assert view.bounding_box() == box, "nothing moves"
    esm.set(locked=False, live={"ranks": ranks, "text": "final ranks, step 9, budget 18 of 72"})
    first.click()
    assert "ranks" not in (esm.saves() or [{}])[-1], "what training left is not painted over"
    expect(view).to_contain_text("show the plan to change it")
    view.get_by_role("button", name="show the plan").click()
    expect(first).to_have_text("8")
    view.get_by_role("button", name="show these ranks").click()
    expect(first).to_have_text("3")
    esm.set(live={})
    expect(first).to_have_text("8")
    first.click()
    assert esm.saves()[-1]["ranks"] == {k: v for k, v in painted.items() if k != site(0, "q")}
