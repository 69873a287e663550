"""The rank grid's ES module in a real Chromium with a fake model: pointer, keys, presets, undo."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.rank_grid_page import MISSING, ROLES, column, site

pytestmark = pytest.mark.browser


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


def test_experts_are_priced_each_and_are_no_linear_layer(open_grid) -> None:
    g = open_grid(rank=4)
    plain = {"row": 0, "role": "q", "site": "q", "shape": [64, 16], "max_rank": 16}
    held = {"row": 0, "role": "down", "site": "down", "shape": [32, 48], "max_rank": 32}
    cells = [plain, {**held, "experts": 4}]
    g.esm.set(rows=["0"], roles=["q", "down"], cells=cells, ranks={"down": 2}, selected="down")
    # 4 experts · rank 2 · (32 + 48), 4 bytes each
    assert g.about() == "layer 0 · down · 4 experts of 32 × 48 · r 2 → 640 parameters, 2.50 KiB"
    g.button("all linear").click()
    assert g.esm.get("ranks") == {"q": 4}


def test_last_layers_wants_a_number(open_grid) -> None:
    g = open_grid()
    g.esm.view().get_by_role("spinbutton").fill("0")
    g.button("last").click()
    assert g.ranks == {}
    assert "whole number" in g.note()


def test_last_layers_are_those_of_each_stack(open_grid) -> None:
    g = open_grid()
    g.esm.set(rows=["enc 0", "enc 1", "enc 2", "dec 0", "dec 1", "outside"])
    g.esm.view().get_by_role("spinbutton").fill("1")
    g.esm.view().get_by_role("spinbutton").press("Enter")
    assert g.ranks == {
        site(row, role): 8 for row in (2, 4) for role in ROLES if (row, role) != MISSING
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
    assert g.note() == "locked until the run ends"
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
