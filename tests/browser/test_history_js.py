"""The history's list, comparison and detail in Chromium: what they send, and that all is text."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from lora_lab_widgets.history import History
from lora_lab_widgets.run_rows import COLUMNS
from tests.browser.esm import EsmPage
from tests.helpers.fake_session import FakeSession

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]


def row(id_: str, state: str = "done", **changes: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "label": "r=8 · lr 0.002 · seed 0",
        "what": "smollm2-135m · mini-e2e",
        "state": state,
        "step": 60,
        "steps": 60,
        "loss": 1.234,
        "metrics": "held-out loss 2.10 → 1.21 · BLEU 12.1 → 38.2",
        "when": "2026-01-02 03:04",
        "title": "",
        "starred": False,
        "keepable": state == "done",
        "resumable": state in ("stopped", "cut off"),
        "deletable": state != "running",
        **changes,
    }


ROWS = [row("run-c", "running"), row("run-b", "stopped"), row("run-a")]
FORM = {"open": True, "rows": ROWS, "picked": [], "total": 3, "folder": "runs"}
COMPARED = {
    "columns": list(COLUMNS),
    "rows": [
        {"id": id_, "label": f"LoRA {id_}", "cells": [str(i)] * len(COLUMNS)}
        for i, id_ in enumerate(("run-a", "run-b"))
    ],
    "curves": [
        {"id": id_, "points": [[i, 3 - i / 40, 3 - i / (40 + k)] for i in range(1, 61)]}
        for k, id_ in enumerate(("run-a", "run-b"))
    ],
    "note": "lowest held-out loss: LoRA r = 8",
    "differs": [["rank r", ["8", "4"]], ["seed", ["0", "1"]]],
}
DETAILS = {
    "id": "run-a",
    "label": "LoRA run-a",
    "title": "",
    "note": "",
    "facts": [["folder", "/runs/run-a"], ["model", "smollm2-135m · float32"]],
    "config": "ll.LoraConfig(r=8)",
    "points": COMPARED["curves"][0]["points"],
    "samples": [{"prompt": "name[Fig]", "base": "no", "adapted": "The Fig is a pub."}],
    "reportable": True,
}


def panel() -> History:
    return History(FakeSession())  # type: ignore[arg-type]


def opened(make: Make, **options: Any) -> EsmPage:
    state = {"form": FORM, **options.pop("state", {})}
    esm = make(panel(), state, **options)
    esm.clear_log()
    return esm


def button(esm: EsmPage, name: str) -> Any:
    return esm.view().get_by_role("button", name=name, exact=True)


def test_is_closed_until_somebody_opens_it(esm_page: Make) -> None:
    esm = esm_page(panel())
    assert esm.sent() == []
    expect(esm.view().get_by_role("table")).to_have_count(0)
    button(esm, "Open the runs").click()
    assert esm.sent()[-1]["type"] == "open"
    assert esm.sent()[-1]["value"] is True
    expect(button(esm, "Open the runs")).to_be_disabled()
    esm.set(form={**FORM, "rows": [], "total": 0})
    expect(esm.view().get_by_text("No run is on disk here yet")).to_be_visible()
    esm.set(form=FORM)
    expect(esm.view().get_by_role("row")).to_have_count(4)
    expect(esm.view().get_by_text("No run is on disk here yet")).to_be_hidden()


def test_what_can_be_done_with_a_run_follows_its_state(esm_page: Make) -> None:
    esm = opened(esm_page)
    expect(button(esm, "Resume run-b")).to_be_enabled()
    expect(button(esm, "Resume run-a")).to_have_count(0)
    expect(button(esm, "Delete run-c")).to_be_disabled()
    button(esm, "Resume run-b").click()
    esm.view().get_by_role("checkbox", name="compare run-a").check()
    button(esm, "Show run-a").click()
    said = [{k: v for k, v in message.items() if v is not None} for message in esm.sent()]
    assert said == [
        {"type": "resume", "id": "run-b"},
        {"type": "pick", "id": "run-a", "value": True},
        {"type": "show", "id": "run-a", "value": True},
    ]
    assert esm.saves() == []


def test_deleting_takes_two_clicks(esm_page: Make) -> None:
    esm = opened(esm_page)
    button(esm, "Delete run-a").click()
    assert esm.sent() == []
    esm.set(busy="reading the runs…")  # redraws nothing under the hand
    button(esm, "Sure? run-a").click()
    assert [(m["type"], m["id"]) for m in esm.sent()] == [("delete", "run-a")]
    button(esm, "Delete run-a").click()
    esm.view().get_by_role("button", name="Refresh").click()  # looking elsewhere takes it back
    expect(button(esm, "Delete run-a")).to_be_visible()
    assert [m["type"] for m in esm.sent()] == ["delete", "refresh"]


def test_a_question_outlives_news_of_the_list(esm_page: Make) -> None:
    esm = opened(esm_page)
    button(esm, "Delete run-a").click()
    for when in ("1 min ago", "2 min ago"):
        esm.set(form={**FORM, "rows": [{**each, "when": when} for each in ROWS]})
        expect(esm.view().get_by_text(when).first).to_be_visible()
        expect(button(esm, "Sure? run-a")).to_be_focused()
    button(esm, "Sure? run-a").click()
    assert [(m["type"], m["id"]) for m in esm.sent()] == [("delete", "run-a")]
    expect(button(esm, "Delete run-a")).to_be_visible()


def test_a_question_that_is_not_answered_is_taken_back(esm_page: Make) -> None:
    esm = esm_page(panel(), {"form": FORM}, views=0, fresh=True)
    esm.page.clock.install(time=0)
    esm.page.clock.pause_at(1_000)
    esm.add_view()
    esm.clear_log()
    button(esm, "Delete run-a").click()
    expect(button(esm, "Sure? run-a")).to_be_visible()
    esm.page.clock.run_for(5_100)
    expect(button(esm, "Delete run-a")).to_be_visible()
    assert esm.sent() == []


def test_picked_runs_are_drawn_on_one_chart_and_in_one_table(esm_page: Make) -> None:
    esm = opened(
        esm_page,
        state={"form": {**FORM, "picked": ["run-a", "run-b"]}, "compared": COMPARED},
    )
    view = esm.view()
    expect(view.locator(".ll-loss-curves path.ll-curve")).to_have_count(2)
    expect(view.locator(".ll-curve-name")).to_have_text(["1", "2"])
    spoken = view.locator(".ll-loss-curves").get_attribute("aria-label") or ""
    assert "1: LoRA run-a, at the end 1.50; 2: LoRA run-b" in spoken
    region = view.get_by_role("region", name="comparison of the picked runs")
    expect(region.get_by_role("row")).to_have_count(3)
    expect(region.get_by_role("columnheader")).to_have_count(2 + len(COLUMNS))
    differs = view.get_by_role("region", name="settings in which the picked runs differ")
    expect(differs.get_by_role("row")).to_have_count(3)
    expect(differs.get_by_role("row").nth(1)).to_have_text("rank r84")
    expect(differs.get_by_role("columnheader").nth(1)).to_contain_text("LoRA run-a")
    marks = view.get_by_role("row").filter(has_text="run-a").first.locator(".ll-past-pick b")
    expect(marks).to_have_text("1")
    esm.set(compared={})
    expect(view.get_by_text("Compared")).to_be_hidden()


def test_one_run_in_detail(esm_page: Make) -> None:
    esm = opened(esm_page, state={"details": DETAILS})
    view = esm.view()
    expect(view.get_by_text("ll.LoraConfig(r=8)")).to_be_visible()
    expect(view.get_by_text("The Fig is a pub.")).to_be_visible()
    button(esm, "Write the report").click()
    assert [(m["type"], m["id"]) for m in esm.sent()] == [("report", "run-a")]
    button(esm, "Hide run-a").click()
    assert esm.sent()[-1]["value"] is False
    esm.set(details={})
    expect(view.get_by_text("ll.LoraConfig(r=8)")).to_be_hidden()


def test_a_run_is_starred_named_noted_and_kept(esm_page: Make) -> None:
    esm = opened(esm_page, state={"details": DETAILS})
    view = esm.view()
    star = button(esm, "star run-a")
    expect(star).to_have_attribute("aria-pressed", "false")
    star.click()
    button(esm, "Keep run-a").click()
    expect(button(esm, "Keep run-b")).to_have_count(0)
    view.get_by_label("name").fill("the long one")
    view.get_by_label("note").fill("two\nlines")
    esm.set(details={**DETAILS, "facts": []})  # news of the run leave what is typed
    button(esm, "Save name and note").click()
    assert [(m["type"], m["id"], m.get("value")) for m in esm.sent()] == [
        ("mark", "run-a", {"starred": True}),
        ("keep", "run-a", None),
        ("mark", "run-a", {"title": "the long one", "note": "two\nlines"}),
    ]
    named = row("run-a", title="the long one", starred=True)
    esm.set(form={**FORM, "rows": [*ROWS[:2], named]})
    expect(star).to_have_attribute("aria-pressed", "true")
    cell = view.locator('[data-run="run-a"] .ll-past-name')
    expect(cell).to_contain_text("the long one")
    expect(cell).to_contain_text("r=8 · lr 0.002 · seed 0")


def test_a_report_that_was_written_opens_by_a_link(esm_page: Make) -> None:
    esm = opened(esm_page, state={"details": DETAILS})
    page = "<!doctype html><title>the report</title><p>ΔW</p>".encode()
    packed = gzip.compress(page)
    offer = {"token": 1, "name": "report-run-a.html", "size": len(packed), "kind": "html.gz"}
    link = esm.view().get_by_role("link", name="Open the report")
    expect(link).to_have_count(0)
    esm.set(offer={**offer, "about": "run-a"})
    for at in range(0, len(packed), 40):
        esm.page.wait_for_function("at => lab.sent.some(m => m.at === at)", arg=at)
        data = base64.b64encode(packed[at : at + 40]).decode()
        esm.receive({"type": "piece", "token": 1, "at": at, "data": data})
    expect(link).to_be_visible()
    text = esm.page.evaluate("url => fetch(url).then(r => r.text())", link.get_attribute("href"))
    assert text == page.decode()
    save = esm.view().get_by_role("link", name="Download it")
    expect(save).to_have_attribute("download", "report-run-a.html")
    esm.set(details={**DETAILS, "id": "run-b"})
    expect(link).to_be_hidden()


def test_names_answers_and_errors_are_text(esm_page: Make) -> None:
    evil = '<img src=x onerror="window.hacked=1">'
    rows = [row(evil, evil, label=evil, what=evil, metrics=evil, when=evil, title=evil)]
    problem = {"message": evil, "remedy": evil, "details": evil, "field": "", "proposal": ""}
    compared = {
        "columns": [evil],
        "rows": [{"id": evil, "label": evil, "cells": [evil]}],
        "curves": [{"id": evil, "points": [[1, 1, 1], [2, 2, 2]]}],
        "note": evil,
        "differs": [[evil, [evil]]],
    }
    details = {
        "title": evil,
        "note": evil,
        "id": evil,
        "label": evil,
        "facts": [[evil, evil]],
        "config": evil,
        "points": [[1, 1, 1]],
        "samples": [{"prompt": evil, "base": evil, "adapted": evil}],
        "reportable": True,
    }
    form = {**FORM, "rows": rows, "picked": [evil], "folder": evil}
    esm = opened(
        esm_page,
        state={
            "form": form,
            "compared": compared,
            "details": details,
            "problem": problem,
            "busy": evil,
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
    esm.view().get_by_role("checkbox", name="compare run-a").press("d")
    assert esm.page.evaluate("() => keys") == []


@pytest.mark.parametrize("width", [340, 620, 1100])
def test_nothing_is_wider_than_its_place(esm_page: Make, width: int) -> None:
    long = "LoRA+PreEmbed r 8, 8+8 · lr 0.002 · seed 0 · 20261121-205040-a-name-of-its-own-b509"
    rows = [row(f"20260101-00000{i}-a-long-name-b509", "running elsewhere") for i in range(3)]
    facts = [["folder", "/home/somebody/" + "a-folder/" * 20]]
    compared = {**COMPARED, "rows": [{**each, "label": long} for each in COMPARED["rows"]]}
    esm = opened(
        esm_page,
        state={
            "form": {**FORM, "rows": rows},
            "compared": compared,
            "details": {**DETAILS, "label": long, "facts": facts},
        },
        width=width,
    )
    assert esm.page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("by", ["cleanup", "signal"])
def test_a_closed_view_leaves_nothing_behind(esm_page: Make, by: str) -> None:
    esm = opened(esm_page)
    esm.remove_view(by=by)
    assert esm.open_ends() == {"model": 0, "document": 0, "window": 0, "intervals": 0}


@pytest.mark.parametrize("width", [620, 900, 1250])
def test_a_line_breaks_between_two_metrics_not_within_one(esm_page: Make, width: int) -> None:
    esm = opened(esm_page, width=width)
    cell = esm.view().locator(".ll-past-metrics").last
    expect(cell).to_have_text("held-out loss 2.10 → 1.21 · BLEU 12.1 → 38.2")
    metrics = cell.locator("span")
    expect(metrics).to_have_text(["held-out loss 2.10 → 1.21 ·", "BLEU 12.1 → 38.2"])
    heights = metrics.evaluate_all("spans => spans.map(span => span.offsetHeight)")
    assert max(heights) < 25, "one line each"
