"""The sweep panel in Chromium: what it sends, what it shows, and that all of it is text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from lora_lab_widgets.sweep_panel import FIELDS, SweepPanel
from tests.browser.esm import EsmPage
from tests.helpers.fake_session import FakeSession, tiny_plan

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

FORM = {"open": True, "values": {**dict.fromkeys(FIELDS, ""), "r": "4, 8", "name": "sweep"}}
PLAN = {"line": "2 cells × 60 steps", "bad": False, "field": "", "cells": 2}
PROGRESS = {
    "state": "running",
    "line": "cell 3 of 12 · r=8, lr 1e-3 · step 14 of 60",
    "ended": 2,
    "total": 12,
    "share": 0.185,
    "left": "about 8 min left",
    "told": "2 skipped: finished in an earlier call",
    "folder": "runs/sweep",
    "hidden": 0,
    "problem": "",
}


def row(what: str, state: str = "done", **changes: Any) -> dict[str, Any]:
    return {
        "cell": what,
        "what": what,
        "state": state,
        "loss": 1.2345,
        "metric": "BLEU 38.2",
        "step": 60,
        "steps": 60,
        "note": "",
        "best": False,
        **changes,
    }


ROWS = [
    row("r=8, seed 0", best=True),
    row("r=4, seed 0", "stopped early", loss=None, step=20, note="behind at step 20"),
    row("r=8, seed 1", "training", loss=None, metric="", step=0),
    row("r=4, seed 1", "failed", loss=None, metric="", step=0, note="the disk is full"),
]


def panel() -> SweepPanel:
    return SweepPanel(FakeSession(tiny_plan().anatomy))  # type: ignore[arg-type]


def opened(make: Make, state: dict[str, Any] | None = None, **options: Any) -> EsmPage:
    esm = make(panel(), {"form": FORM, "plan": PLAN, **(state or {})}, **options)
    esm.clear_log()
    return esm


def button(esm: EsmPage, name: str) -> Any:
    return esm.view().get_by_role("button", name=name, exact=True)


def test_is_closed_until_somebody_opens_it(esm_page: Make) -> None:
    esm = esm_page(panel())
    assert esm.sent() == []
    expect(button(esm, "Start the sweep")).to_be_hidden()
    door = button(esm, "Open the sweep")
    expect(door).to_have_attribute("aria-expanded", "false")
    door.click()
    assert esm.sent()[-1] == {"type": "open", "value": True}
    expect(door).to_be_disabled()
    esm.set(form=FORM)
    expect(button(esm, "Close")).to_have_attribute("aria-expanded", "true")
    expect(button(esm, "Start the sweep")).to_be_disabled()  # nothing is counted yet
    expect(esm.view().get_by_role("table")).to_be_hidden()


def test_typing_is_told_once_it_pauses_and_enter_tells_at_once(esm_page: Make) -> None:
    esm = opened(esm_page)
    ranks = esm.view().get_by_label("ranks")
    ranks.press_sequentially("16", delay=10)
    esm.page.wait_for_function("() => lab.sent.length > 0")
    assert [m["type"] for m in esm.sent()] == ["set"]
    typed = esm.sent()[0]["values"]
    assert typed.keys() == set(FIELDS)
    assert typed["r"] == ranks.input_value()
    esm.clear_log()
    ranks.press("Enter")
    assert [m["type"] for m in esm.sent()] == ["set"]
    esm.set(form={**FORM, "values": {**FORM["values"], "r": "1"}})
    assert ranks.input_value() != "1", "what is under the hand stays as typed"
    assert esm.saves() == []


def test_a_text_that_cannot_be_is_blamed_and_nothing_starts(esm_page: Make) -> None:
    esm = opened(esm_page)
    expect(button(esm, "Start the sweep")).to_be_enabled()
    line = "ranks: 'x' is no whole number of at least 1"
    esm.set(plan={"line": line, "bad": True, "field": "r", "cells": 0})
    expect(esm.view().get_by_label("ranks")).to_have_attribute("aria-invalid", "true")
    expect(esm.view().get_by_text(line)).to_be_visible()
    expect(button(esm, "Start the sweep")).to_be_disabled()
    expect(button(esm, "Write sweep.yaml")).to_be_disabled()
    esm.set(plan=PLAN)
    assert esm.view().get_by_label("ranks").get_attribute("aria-invalid") is None


def test_start_write_and_stop_say_what_is_typed(esm_page: Make) -> None:
    esm = opened(esm_page, {"bench": "b1"})
    button(esm, "Start the sweep").click()
    esm.page.evaluate(
        """() => globalThis[Symbol.for("lora-lab:grids")]
          .set("b1", { ranks: { "layers.0.v": 2 } })"""
    )
    expect(button(esm, "Start the sweep")).to_be_disabled()
    esm.receive({"type": "seen"})  # refused: Python has answered
    expect(button(esm, "Start the sweep")).to_be_enabled()
    button(esm, "Write sweep.yaml").click()
    esm.set(progress=PROGRESS, rows=ROWS)
    expect(esm.view().get_by_label("ranks")).to_be_disabled()
    button(esm, "Stop the sweep").click()
    expect(button(esm, "Stop the sweep")).to_be_disabled()
    assert [m["type"] for m in esm.sent()] == ["start", "write", "stop"]
    assert [m["values"]["r"] for m in esm.sent()[:2]] == ["4, 8", "4, 8"]
    assert [m.get("ranks") for m in esm.sent()[:2]] == [None, {"layers.0.v": 2}]
    esm.set(run_file={"path": "/x/sweep.yaml", "commands": [{"text": "lora-lab", "hint": "here"}]})
    expect(esm.view().get_by_text("wrote /x/sweep.yaml")).to_be_visible()


def test_progress_and_the_cells_as_they_stand(esm_page: Make) -> None:
    esm = opened(esm_page, {"progress": PROGRESS, "rows": ROWS})
    view = esm.view()
    for key in ("line", "left", "told", "folder"):
        expect(view.get_by_text(PROGRESS[key], exact=True)).to_be_visible()
    bar = view.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuenow", "19")
    expect(bar).to_have_attribute("aria-valuetext", "2 of 12 cells")
    shown = view.get_by_role("row")
    expect(shown).to_have_count(5)
    expect(shown.nth(1).get_by_role("cell")).to_have_text(
        ["best", "r=8, seed 0", "done", "1.234", "BLEU 38.2", "60 / 60", "", ""]
    )
    expect(shown.nth(2)).to_contain_text("stopped early")
    expect(shown.nth(2)).to_contain_text("behind at step 20")
    expect(shown.nth(4)).to_contain_text("the disk is full")
    expect(view.get_by_text("best", exact=True)).to_have_count(1)
    esm.set(progress={**PROGRESS, "state": "done", "line": "12 of 12 cells", "hidden": 30})
    expect(button(esm, "Start the sweep")).to_be_enabled()
    expect(view.get_by_text("and 30 more cells")).to_be_visible()


def test_steps_are_not_read_out(esm_page: Make) -> None:
    esm = opened(esm_page, {"progress": PROGRESS})
    spoken = esm.view().locator(".ll-sr[role=status]")
    expect(spoken).to_have_text("sweep: running, 2 of 12 cells")
    esm.page.evaluate(
        "() => { window.told = 0; new MutationObserver(() => { window.told += 1; })"
        ".observe(document.querySelector('.ll-sr'), { childList: true, characterData: true }); }"
    )
    esm.set(progress={**PROGRESS, "line": "cell 3 of 12 · step 15 of 60"})
    esm.set(progress={**PROGRESS, "line": "cell 4 of 12", "ended": 3})
    expect(spoken).to_have_text("sweep: running, 3 of 12 cells")
    assert esm.page.evaluate("() => window.told") == 1


def test_names_notes_and_errors_are_text(esm_page: Make) -> None:
    evil = '<img src=x onerror="window.hacked=1">'
    changes = dict.fromkeys(("state", "metric", "note"), evil)
    told = dict.fromkeys(("line", "left", "told", "folder", "problem", "state"), evil)
    problem = {"message": evil, "remedy": evil, "details": evil, "field": "", "proposal": ""}
    esm = opened(
        esm_page,
        {
            "form": {"open": True, "values": dict.fromkeys(FIELDS, evil)},
            "plan": {**PLAN, "line": evil},
            "rows": [row(evil, **changes)],
            "progress": {**PROGRESS, **told},
            "run_file": {"path": evil, "commands": [{"text": evil, "hint": evil}]},
            "problem": problem,
        },
    )
    assert esm.view().locator("img, script").count() == 0
    expect(esm.view().get_by_role("alert").locator("b")).to_have_text(evil)
    assert esm.page.evaluate("() => window.hacked") is None


def test_keys_stay_out_of_the_notebook(esm_page: Make) -> None:
    esm = opened(esm_page)
    esm.page.evaluate(
        "() => { window.keys = []; document.addEventListener('keydown', e => keys.push(e.key)); }"
    )
    esm.view().get_by_label("seeds").press("d")
    assert esm.page.evaluate("() => keys") == []


@pytest.mark.parametrize("width", [340, 620, 1100])
def test_nothing_is_wider_than_its_place(esm_page: Make, width: int) -> None:
    long = "LoRA+PreEmbed, targets q+k+v+o+gate+up+down, layers 15-29, r=8, lr 0.0002, seed 12"
    folder = "/home/somebody/" + "a-folder/" * 20
    esm = opened(
        esm_page,
        {
            "rows": [row(long, "stopped early", note=long), row("x" * 120, "failed")],
            "progress": {**PROGRESS, "line": long, "folder": folder},
            "plan": {**PLAN, "line": long * 2},
        },
        width=width,
    )
    assert esm.page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("by", ["cleanup", "signal"])
def test_a_closed_view_leaves_nothing_behind(esm_page: Make, by: str) -> None:
    esm = opened(esm_page)
    esm.view().get_by_label("seeds").press("1")
    esm.remove_view(by=by)
    assert esm.open_ends() == {"model": 0, "document": 0, "window": 0, "intervals": 0}


def test_a_comparison_is_a_tick_and_what_it_came_to_is_text(esm_page: Make) -> None:
    esm = opened(esm_page, {"progress": {**PROGRESS, "state": "done"}, "rows": ROWS})
    tick = esm.view().get_by_label("compare methods")
    tick.check()
    assert [m["type"] for m in esm.sent()] == ["set"]
    assert esm.sent()[0]["values"]["compare"] == "yes"
    esm.set(form={**FORM, "values": {**FORM["values"], "compare": "yes"}})
    expect(tick).to_be_checked()
    expect(button(esm, "Write compare.yaml")).to_be_visible()
    esm.set(form=FORM)
    expect(tick).not_to_be_checked()
    found = esm.view().get_by_role("table", name="methods at their own best rates")
    expect(found).to_be_hidden()
    esm.set(
        found={
            "header": ["examples", "method"],
            "rows": [["60", "<b>LoRA</b>"]],
            "words": "LoRA has the best loss.",
            "notes": "two rates",
        }
    )
    expect(found).to_contain_text("<b>LoRA</b>")
    expect(esm.view().get_by_text("LoRA has the best loss.")).to_be_visible()
    esm.set(found={})
    expect(found).to_be_hidden()


@pytest.mark.parametrize("width", [1300, 800, 560])
def test_a_cells_button_stands_in_its_line(esm_page: Make, width: int) -> None:
    rows = [row("r=8", run="run-1"), row("r=4", run="run-2", note="behind at step 20")]
    esm = opened(esm_page, {"progress": {**PROGRESS, "state": "done"}, "rows": rows}, width=width)
    lines = esm.view().locator(".ll-sweep-cells .ll-sweep-row:not(.ll-sweep-head)")
    for line, each in zip(lines.all(), rows, strict=True):
        what, keep = line.locator(".ll-sweep-what"), line.get_by_role("button")
        expect(keep).to_have_accessible_name(f"Keep {each['what']}")
        text, box = what.bounding_box(), keep.bounding_box()
        if width > 640:  # else it has no room beside it
            assert box["y"] <= text["y"] + text["height"] / 2 <= box["y"] + box["height"]
        assert line.bounding_box()["x"] + line.bounding_box()["width"] >= box["x"] + box["width"]


def test_the_example_of_layers_is_of_this_model(esm_page: Make) -> None:
    esm = opened(esm_page)
    expect(esm.view().get_by_label("layers")).to_have_attribute("placeholder", "0-1, 2-3")
