"""What the rank grid shows, in a real Chromium: labels, sizes, fingers, themes, live ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.browser.esm import EsmPage
from tests.browser.rank_grid_page import column, grid, site

pytestmark = pytest.mark.browser


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
    focused = []
    for _ in range(3):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("() => document.activeElement.textContent"))
    assert focused == ["?", "?", "copy as Python"]
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


def test_a_header_that_was_clicked_is_told_as_what_it_is(open_grid) -> None:
    g = open_grid()
    g.header("v").click()
    g.page.mouse.move(0, 0)
    assert g.about() == "v · 6 matrices · 3,840 parameters, 15 KiB"  # 6 · 8 · (16 + 64) · 4 B
    g.header("v").click()
    g.page.mouse.move(0, 0)
    assert g.about() == "v · 6 matrices · frozen"
    g.button("undo").focus()
    first, second = g.about().split("\n")
    assert first.startswith("click or drag to paint")
    assert second.startswith("keys: ")


def test_a_selection_without_ranks_is_frozen_and_stays_where_it_is(open_grid) -> None:
    g = open_grid()
    g.focus(0, "q")
    g.press("Shift+ArrowDown")
    assert g.about() == "2 matrices selected: frozen"
    g.button("undo").focus()
    assert g.about() == "2 matrices selected: frozen", "its cells are marked still"


def test_a_pointer_that_rests_hides_nothing_of_where_the_keys_are(open_grid) -> None:
    g = open_grid()
    g.cell(0, "q").click()
    assert g.about().startswith("layer 0 · q")
    g.press("ArrowRight")
    assert g.about().startswith("layer 0 · k")
    g.press("4")
    assert g.about() == "layer 0 · k · 16 × 64 · r 4 → 320 parameters, 1.25 KiB"
    g.cell(1, "v").hover()
    assert g.about().startswith("layer 1 · v"), "until the pointer moves again"


def test_totals_count_the_head_as_the_savings_do(open_grid) -> None:
    g = open_grid(ranks={site(3, "q"): 8}, head=66)
    totals = g.page.locator(".ll-rank-totals")
    q = g.esm.get("cells")[0]["shape"]
    expect(totals).to_contain_text(f"and the head, {8 * sum(q) + 66:,} parameters")
    g.esm.set(ranks={})
    expect(totals).to_contain_text("matrices, 0 parameters")  # a head alone is no plan
