"""A new panel is a class with `update(tick)`, an ES module, and one entry in `PANELS`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import traitlets
from playwright.sync_api import expect

from lora_lab_widgets import Workbench
from lora_lab_widgets.panel import PanelWidget, Tick
from lora_lab_widgets.session import Session
from lora_lab_widgets.workbench import PANELS
from tests.browser.conftest import (  # noqa: F401
    blank_pages,
    chromium,
    esm_page,
    resting_pages,
)
from tests.helpers.tiny_chat import tiny_chat_model

QUICK = {"max_steps": 100_000, "per_device_train_batch_size": 2, "max_length": 96}


class Heartbeats(PanelWidget):
    """Counts the heartbeats, and says what the latest one told."""

    _esm = """
    export default {
      render({ model, el }) {
        const draw = () => (el.textContent = `${model.get("count")} beats: ${model.get("told")}`);
        model.on("change:told", draw);
        draw();
      },
    };
    """
    count = traitlets.Int().tag(sync=True)
    told = traitlets.Unicode().tag(sync=True)

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.ticks: list[Tick] = []
        self.error: Exception | None = None

    def update(self, tick: Tick) -> None:
        if self.error:
            raise self.error
        self.ticks.append(tick)
        self.count += 1
        doing = "training" if tick.busy else "at rest"
        self.told = f"{doing} on {self.session.lm.card.name}, {tick.theme}, {tick.width} px"


@pytest.fixture
def wb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setitem(PANELS, "heartbeats", Heartbeats)
    monkeypatch.setitem(PANELS, "after_it", Heartbeats)
    bench = Workbench(*tiny_chat_model(), output_dir=tmp_path, **QUICK)
    yield bench
    if bench.run is not None and not bench.run.state.final:
        bench.run.stop()
        bench.run.wait(60)


def tick(wb: Any, theme: str = "light", width: int = 1000) -> Tick:
    wb.panel._handle({"type": "tick", "seq": "t", "theme": theme, "width": width})
    return wb.after_it.ticks[-1]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_stands_in_the_workbench_behind_the_others(wb: Any) -> None:
    assert wb.box.children[-2:] == (wb.heartbeats, wb.after_it)
    assert list(wb.panels)[-2:] == ["heartbeats", "after_it"]
    assert wb.history in wb.box.children


def test_it_hears_theme_width_and_how_the_run_stands_and_outlives_it(wb: Any) -> None:
    first = tick(wb, "dark", 431)
    assert (first.theme, first.width, first.busy, first.settled) == ("dark", 431, False, False)
    assert (first.run, first.snapshot) == (None, None)
    assert wb.heartbeats.told == "at rest on LlamaForCausalLM, dark, 431 px"
    wb.start()
    until(lambda: tick(wb).snapshot.step >= 2)
    training = tick(wb)
    assert (training.busy, training.settled, training.run) == (True, True, wb.run)
    assert training.snapshot.run_id == wb.run.id
    assert "training on" in wb.heartbeats.told
    wb.run.stop()
    wb.run.wait(60)
    over = tick(wb)
    assert (over.busy, over.settled, over.snapshot.state) == (False, True, wb.run.state)
    assert wb.heartbeats.count == len(wb.heartbeats.ticks) == len(wb.after_it.ticks)
    assert wb.box.children[-2] is wb.heartbeats
    assert wb.errors == {}


def test_its_error_is_shown_under_it_and_nowhere_else(wb: Any) -> None:
    tick(wb)
    wb.heartbeats.error = ValueError("no such color")
    other = wb.after_it.count
    tick(wb)
    assert wb.after_it.count == other + 1, "the panel behind it is updated"
    error = wb.errors["heartbeats"]
    assert error.problem["message"] == "ValueError: no such color"
    assert (
        error.problem["remedy"] == "this panel could not be updated; the others and the run go on"
    )
    assert "in update" in error.problem["details"]
    assert list(wb.errors) == ["heartbeats"]
    assert wb.panel.snapshot["problem"] is None
    assert [panel.problem for panel in (wb.history, wb.try_it, wb.sweep_panel)] == [None] * 3
    assert wb.box.children[-2].children == (wb.heartbeats, error)
    wb.heartbeats.error = None
    tick(wb)
    assert error.problem is None
    assert wb.heartbeats.count == other + 1


@pytest.mark.parametrize("name", ["header", "grid", "savings", "panel", "delta_w", "history"])
def test_any_panel_has_its_error_under_it(wb: Any, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(wb.panels[name], "update", lambda _: 1 / 0)
    tick(wb)
    tick(wb)
    assert list(wb.errors) == [name]
    boxes = wb.box, wb.box.children[0], wb.box.children[2]
    shown = [each for box in boxes for each in box.children]
    pair = wb.panels[name], wb.errors[name]
    assert [getattr(each, "children", None) for each in shown].count(pair) == 1
    assert wb.panels[name] not in shown


@pytest.mark.browser
def test_its_module_draws_it(wb: Any, esm_page: Any) -> None:  # noqa: F811
    tick(wb)
    page = esm_page(wb.heartbeats)
    expect(page.view()).to_have_text("1 beats: at rest on LlamaForCausalLM, light, 1000 px")


@pytest.mark.browser
def test_an_error_is_red_and_can_be_opened(wb: Any, esm_page: Any) -> None:  # noqa: F811
    wb.heartbeats.error = ValueError("<b>no such color</b>")
    tick(wb)
    page = esm_page(wb.errors["heartbeats"])
    alert = page.view().get_by_role("alert")
    expect(alert).to_contain_text("ValueError: <b>no such color</b>")
    expect(alert).to_contain_text("the others and the run go on")
    page.view().get_by_text("details").click()
    expect(alert.locator("pre")).to_contain_text("in update")
    page.set(problem=None)
    expect(alert).to_be_hidden()
    page.remove_view(0)
    assert not any(page.open_ends().values())
