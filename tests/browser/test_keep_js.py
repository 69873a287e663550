"""The "Keep" panel in Chromium: what it offers and sends, and a file that comes in pieces."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from lora_lab_widgets.keep import NOTHING, Keep
from tests.browser.esm import EsmPage
from tests.helpers.fake_session import FakeSession

pytestmark = pytest.mark.browser
Make = Callable[..., EsmPage]

FORMS = [
    {"name": "peft", "text": "PEFT's format", "why": ""},
    {"name": "uniform", "text": "one rank", "why": ""},
    {"name": "loralib", "text": "loralib", "why": "of LoRA alone, and this is IA3"},
]
FORM: dict[str, Any] = {
    "id": "run-a",
    "words": "run run-a",
    "waits": "",
    "latest": True,
    "folder": "adapters/run-a",
    "forms": FORMS,
    "offers": {"use": "it is on the model", "continue": "", "report": ""},
}


def opened(make: Make, **options: Any) -> EsmPage:
    state = {"form": FORM, "hub": {"why": ""}, **options.pop("state", {})}
    esm = make(Keep(FakeSession()), state, **options)  # type: ignore[arg-type]
    esm.clear_log()
    return esm


def button(esm: EsmPage, name: str) -> Any:
    return esm.view().get_by_role("button", name=name, exact=True)


def test_before_anything_is_learned_it_says_what_will_be_here(esm_page: Make) -> None:
    esm = esm_page(Keep(FakeSession()))  # type: ignore[arg-type]
    expect(esm.view().get_by_text(NOTHING)).to_be_visible()
    expect(button(esm, "Save")).to_have_count(0)
    esm.view().get_by_text("the hub, and adapters from elsewhere").click()
    expect(button(esm, "Push to the hub")).to_be_disabled()
    esm.view().get_by_label("load an adapter").fill("adapters/mine")
    button(esm, "Load").click()
    assert esm.sent() == [{"type": "load", "folder": "adapters/mine"}]


def test_what_people_do_goes_out(esm_page: Make) -> None:
    esm = opened(esm_page)
    view = esm.view()
    expect(view.get_by_label("folder")).to_have_value("adapters/run-a")
    view.get_by_label("folder").fill("mine")
    esm.set(form={**FORM, "offers": {"use": "", "continue": "", "report": "", "evaluate": ""}})
    expect(view.get_by_label("folder")).to_have_value("mine")
    view.locator(".ll-keep-form").select_option("uniform")
    for name in ("Save", "Use this adapter", "Continue from here", "Evaluate what was learned"):
        button(esm, name).click()
    button(esm, "Report").click()
    view.get_by_text("the hub, and adapters from elsewhere").click()
    view.get_by_label("repository").fill("me/mine")
    button(esm, "Push to the hub").click()
    assert esm.sent() == [
        {"type": "save", "form": "uniform", "folder": "mine"},
        {"type": "use"},
        {"type": "continue"},
        {"type": "evaluate"},
        {"type": "report"},
        {"type": "push", "repo": "me/mine", "private": True},
    ]
    assert esm.saves() == []


def test_what_cannot_be_done_is_there_with_its_reason(esm_page: Make) -> None:
    why = "not logged in to the hub"
    esm = opened(esm_page, state={"hub": {"why": why}})
    use = button(esm, "Use this adapter")
    expect(use).to_be_disabled()
    expect(use).to_have_attribute("title", "it is on the model")
    expect(button(esm, "Evaluate what was learned")).to_have_count(0)
    option = esm.view().locator("option[value=loralib]")
    expect(option).to_be_disabled()
    expect(option).to_have_text("loralib: of LoRA alone, and this is IA3")
    esm.view().get_by_text("the hub, and adapters from elsewhere").click()
    expect(button(esm, "Push to the hub")).to_be_disabled()
    expect(esm.view().get_by_text(why)).to_be_visible()
    button(esm, "Look again").click()
    assert esm.sent() == [{"type": "look"}]
    esm.set(busy="writing…")
    expect(button(esm, "Save")).to_be_disabled()
    expect(esm.view().get_by_role("status").filter(has_text="writing…")).to_be_visible()


def test_a_question_waits_for_its_answer(esm_page: Make) -> None:
    asked = {"type": "save", "form": "peft", "folder": "a", "sure": True}
    esm = opened(esm_page)
    esm.set(question={"line": "a holds an adapter already. Replace it?", "asked": asked})
    expect(esm.view().get_by_role("alert").filter(has_text="Replace it?")).to_be_visible()
    expect(button(esm, "Cancel")).to_be_focused()
    button(esm, "Go ahead").click()
    button(esm, "Cancel").click()
    assert esm.sent() == [asked, {"type": "no"}]
    esm.set(question={})
    expect(button(esm, "Go ahead")).to_have_count(0)


def test_a_zip_comes_in_pieces_to_the_page_that_asked(esm_page: Make, tmp_path: Path) -> None:
    esm = opened(esm_page, views=2)
    data = bytes(range(256)) * 5
    with esm.page.expect_download() as coming:
        button(esm, "Download").click()
        esm.set(offer={"token": 7, "name": "run-a.zip", "size": len(data), "kind": "zip"})
        for at in range(0, len(data), 500):
            esm.page.wait_for_function("at => lab.sent.some(m => m.at === at)", arg=at)
            piece = base64.b64encode(data[at : at + 500]).decode()
            esm.receive({"type": "piece", "token": 7, "at": at, "data": piece})
    assert coming.value.suggested_filename == "run-a.zip"
    coming.value.save_as(tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == data
    asked = [m for m in esm.sent() if m["type"] == "piece"]
    assert len(asked) == 3, "the other view has asked for nothing"


def test_a_file_that_does_not_come_is_said(esm_page: Make) -> None:
    esm = opened(esm_page)
    button(esm, "Download").click()
    esm.set(offer={"token": 7, "name": "run-a.zip", "size": 10, "kind": "zip"})
    esm.page.wait_for_function("() => lab.sent.some(m => m.type === 'piece')")
    esm.receive({"type": "seen", "seq": "piece-7-0"})
    expect(esm.view().get_by_text("the file did not come; press Download again")).to_be_visible()


def test_what_was_done_is_told_and_all_is_text(esm_page: Make) -> None:
    evil = '<img src=x onerror="window.hacked=1">'
    form = {**FORM, "words": evil, "forms": [{"name": "peft", "text": evil, "why": evil}]}
    esm = opened(
        esm_page,
        state={
            "form": {**form, "folder": evil, "latest": False},
            "done": {"title": evil, "lines": [evil, "read back: 60 matrices, same answer"]},
            "question": {"line": evil, "asked": {}},
            "hub": {"why": evil},
            "problem": {"message": evil, "remedy": "", "details": "", "proposal": ""},
        },
    )
    expect(esm.view().get_by_text("60 matrices, same answer")).to_be_visible()
    button(esm, "Back to the latest run").click()
    assert esm.sent() == [{"type": "latest"}]
    assert esm.view().locator("img, script").count() == 0
    assert esm.page.evaluate("() => window.hacked") is None


@pytest.mark.parametrize("width", [340, 620, 1100])
def test_nothing_is_wider_than_its_place(esm_page: Make, width: int) -> None:
    done = {"title": "Saved", "lines": ["/home/somebody/" + "a-folder/" * 20]}
    esm = opened(esm_page, state={"done": done}, width=width)
    esm.view().get_by_text("the hub, and adapters from elsewhere").click()
    assert esm.page.evaluate("() => document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("by", ["cleanup", "signal"])
def test_a_closed_view_leaves_nothing_behind(esm_page: Make, by: str) -> None:
    esm = opened(esm_page)
    esm.remove_view(by=by)
    assert esm.open_ends() == {"model": 0, "document": 0, "window": 0, "intervals": 0}
