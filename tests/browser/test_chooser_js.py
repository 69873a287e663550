"""The pickers of model and data in Chromium, with a fake model."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from lora_lab.tasks.proposals import KINDS
from tests.browser.esm import EsmPage

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

CHOSEN = {
    "model": "smollm2-135m", "device": "auto", "dtype": "auto", "data": "mini-e2e", "options": {},
}  # fmt: skip
STATE: dict[str, Any] = {
    "shown": True,
    "closable": False,
    "here": True,
    "chosen": CHOSEN,
    "models": [
        {"name": "smollm2-135m", "text": "embedded · Apache-2.0 · 94 MiB"},
        {"name": "./<b>mine</b>", "text": "folder · license not stated · 1 GiB"},
    ],
    "tasks": [
        {"name": "mini-e2e", "text": "facts → sentence", "card": ["made by <b>a program</b>"]},
        {"name": "mini-nli", "text": "two sentences → class", "card": ["hard: negations"]},
    ],
    "kinds": {kind: list(options) for kind, options in KINDS.items()},
    "devices": [{"name": "auto", "text": "auto: CPU"}, {"name": "cpu", "text": "CPU"}],
    "dtypes": [{"name": "auto", "text": "auto: float32"}, {"name": "bfloat16", "text": "bfloat16"}],
    "card": {"name": "smollm2-135m", "lines": ["134.5 M parameters", "needs 513 MiB"]},
    "data": {},
    "doing": {},
    "busy": False,
    "notes": [],
    "problem": None,
}
OWN = {
    "name": "own.csv", "rows": 9903, "columns": ["a", "b", "<i>c</i>"],
    "first": [["1", "2", "<i>3</i>"]], "options": {}, "line": "proposed: prompt = a", "problem": "",
}  # fmt: skip


def test_models_and_tasks_are_lines_to_pick(esm_page: Make) -> None:
    esm = esm_page("chooser", STATE)
    view = esm.view()
    expect(view.get_by_role("radio", name="smollm2-135m")).to_be_checked()
    expect(view.get_by_role("radio", name="mini-e2e")).to_be_checked()
    expect(view.locator(".ll-chooser-card")).to_have_text("134.5 M parametersneeds 513 MiB")
    expect(view.get_by_text("made by <b>a program</b>")).to_be_visible()
    expect(view.get_by_text("hard: negations")).to_be_hidden()
    expect(view.get_by_role("button", name="Close")).to_be_hidden()
    assert view.locator(".ll-chooser-columns :is(b b, div > b)").count() == 0
    view.get_by_role("radio", name="mini-nli").check()
    view.get_by_role("radio", name="mine").check()
    view.get_by_label("dtype", exact=True).select_option("bfloat16")
    assert esm.sent() == [
        {"type": "choose", "data": "mini-nli", "options": {}},
        {"type": "choose", "model": "./<b>mine</b>"},
        {"type": "choose", "dtype": "bfloat16"},
    ]


def test_names_are_typed_too_and_stay(esm_page: Make) -> None:
    esm = esm_page("chooser", STATE)
    view = esm.view()
    view.get_by_label("another model").fill("owner/name ")
    view.get_by_label("another model").press("Enter")
    assert esm.sent() == [{"type": "choose", "model": "owner/name"}]
    esm.set(chosen={**CHOSEN, "model": "owner/name"}, card={})
    expect(view.get_by_label("another model")).to_have_value("owner/name")
    expect(view.get_by_label("configuration", exact=True)).to_be_hidden()
    esm.set(chosen={**CHOSEN, "model": "owner/name", "data": "nyu-mll/glue"})
    view.get_by_label("configuration", exact=True).fill("mnli")
    view.get_by_label("configuration", exact=True).press("Enter")
    assert esm.sent()[1:] == [{"type": "choose", "options": {"config_name": "mnli"}}]
    esm.set(chosen={**CHOSEN, "model": "owner/name"})
    expect(view.locator(".ll-chooser-card")).to_have_text("looking what it takes…")
    assert view.get_by_role("radio", checked=True).count() == 1  # the data's
    esm.set(card={"problem": {"message": "owner/name is not on this machine"}})
    expect(view.locator(".ll-chooser-card")).to_have_text("owner/name is not on this machine")


def test_columns_are_proposed_and_may_be_changed(esm_page: Make) -> None:
    options = {"prompt": "a", "completion": "b"}
    chosen = {**CHOSEN, "data": "own.csv", "options": options}
    esm = esm_page("chooser", {**STATE, "chosen": chosen, "data": OWN})
    view = esm.view()
    expect(view.get_by_label("other data")).to_have_value("own.csv")
    expect(view.get_by_label("read as", exact=True)).to_have_value("prompt → completion")
    expect(view.get_by_label("completion", exact=True)).to_have_value("b")
    expect(view.get_by_text("9,903 rows: proposed: prompt = a")).to_be_visible()
    expect(view.locator("th").nth(2)).to_have_text("<i>c</i>")
    view.get_by_label("completion", exact=True).select_option("<i>c</i>")
    view.get_by_label("read as", exact=True).select_option("text → class")
    view.get_by_label("read as", exact=True).select_option("by its layout")
    assert esm.sent() == [
        {"type": "choose", "options": {"prompt": "a", "completion": "<i>c</i>"}},
        {"type": "choose", "options": {"text": "a", "label": "b"}},
        {"type": "choose", "options": {}},
    ]


def test_loading_is_never_silent_and_can_be_given_up(esm_page: Make) -> None:
    esm = esm_page("chooser", STATE, fresh=True)
    view = esm.view()
    expect(view.get_by_role("button", name="Cancel")).to_be_hidden()
    view.get_by_role("button", name="Open").click()
    expect(view.get_by_role("button", name="Open")).to_be_disabled()
    esm.page.clock.install(time=0)
    esm.page.clock.pause_at(60_000)  # it moves when the test says so
    esm.set(busy=True, doing={"text": "reading the weights", "share": None, "seconds": 3})
    expect(view.get_by_text("reading the weights", exact=True)).to_be_visible()
    for second in range(3, 9):  # the kernel answers nothing, and the page counts on
        expect(view.get_by_text(f"{second} s", exact=True)).to_be_visible()
        esm.page.clock.run_for(1000)
    esm.set(doing={"text": "downloading", "share": 0.25, "seconds": 9})
    bar = view.get_by_role("progressbar")
    expect(bar).to_have_attribute("aria-valuetext", "25 %")
    view.get_by_role("button", name="Cancel").click()
    sent = [each["type"] for each in esm.sent()]
    assert sent[0] == "open"
    assert sent[-1] == "cancel"
    assert sent.count("tick") >= 2  # it asks again where an answer is lost
    esm.set(busy=False, doing={}, notes=["cancelled: nothing was opened"])
    expect(view.get_by_role("button", name="Open")).to_be_enabled()
    expect(bar).to_be_hidden()
    count = len(esm.sent())
    esm.page.clock.run_for(20_000)
    assert len(esm.sent()) == count
    esm.remove_view()
    assert not any(esm.open_ends().values())


def test_it_asks_for_news_while_there_will_be_some(esm_page: Make) -> None:
    esm = esm_page("chooser", {**STATE, "busy": True})
    for _ in range(3):
        esm.page.wait_for_function("() => lab.sent.length > 0")
        assert esm.sent() == [{"type": "tick"}]
        esm.clear_log()
        esm.receive({"type": "seen", "seq": None})


def test_an_upload_goes_in_pieces_each_after_the_last_ones_answer(esm_page: Make) -> None:
    esm = esm_page("chooser", STATE)
    data = b"prompt,completion\n" + b"x" * 600_000
    file = {"name": "mine.csv", "mimeType": "text/csv", "buffer": data}
    esm.view().locator("input[type=file]").set_input_files(file)
    came = b""
    for number in range(2):
        esm.page.wait_for_function("count => lab.sent.length === count", arg=number + 1)
        piece = esm.sent()[-1]
        assert (piece["type"], piece["name"]) == ("upload", "mine.csv")
        assert (piece["first"], piece["last"]) == (number == 0, number == 1)
        came += base64.b64decode(piece["data"])
        esm.receive({"type": "seen", "seq": piece["seq"]})
    assert came == data


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1100])
def test_it_fits_its_place(esm_page: Make, width: int, theme: str) -> None:
    chosen = {**CHOSEN, "data": "own.csv", "options": {"prompt": "a", "completion": "b"}}
    esm = esm_page("chooser", {**STATE, "chosen": chosen, "data": OWN}, width=width, theme=theme)
    box = esm.view().locator(".ll-chooser").bounding_box()
    groups = esm.view().get_by_role("group").all()
    assert len(groups) == 2
    for group in groups:
        inner = group.bounding_box()
        assert box["x"] <= inner["x"]
        assert inner["x"] + inner["width"] <= box["x"] + box["width"] + 0.5
    tops = [group.bounding_box()["y"] for group in groups]
    assert (tops[0] == tops[1]) == (width > 700)


def test_marimo_is_told_what_to_do(esm_page: Make) -> None:
    esm = esm_page("chooser", {**STATE, "here": False})
    expect(esm.view().get_by_text("in marimo a cell opens another")).to_be_visible()
    expect(esm.view().get_by_role("button", name="Open")).to_be_disabled()
