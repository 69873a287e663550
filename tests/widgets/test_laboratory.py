"""The analysis of ΔW without a browser: doors, tabs, controls, sliders, and what it sends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import pytest
from ipywidgets import Widget

from lora_lab.errors import AdapterError
from lora_lab.training.snapshot import RunState, Snapshot
from lora_lab_widgets import laboratory
from lora_lab_widgets.lab_views import VIEWS
from lora_lab_widgets.laboratory import Laboratory
from lora_lab_widgets.panel import Tick
from tests.helpers.fake_session import FakeSession
from tests.helpers.fake_views import FakeView, OtherView, until


class Bench:
    """The panel with two fake views, and a browser's side of it."""

    def __init__(self) -> None:
        self.lab = Laboratory(FakeSession())  # type: ignore[arg-type]
        self.step = 7
        self.state = RunState.DONE

    @property
    def fake(self) -> FakeView:
        return self.lab._views["fake"]

    def tick(self, theme: str = "light", width: int = 700) -> None:
        snapshot = Snapshot("run-1", self.state, step=self.step)
        self.lab.update(Tick(snapshot, theme=theme, width=width))

    def settle(self, **kwargs: Any) -> None:
        until(lambda: (self.tick(**kwargs), self.lab._jobs._doing is None)[1])

    def send(self, **content: Any) -> None:
        self.lab.panel._handle_custom_msg({"seq": "1", **content}, [])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(laboratory, "VIEWS", (_Fake, _Other))
    yield Bench()
    Widget.close_all()


class _Fake(FakeView):
    def __init__(self, *_: Any) -> None:
        super().__init__()


class _Other(OtherView):
    def __init__(self, *_: Any) -> None:
        super().__init__()


def test_closed_it_costs_nothing(bench: Bench, sent: list[Any]) -> None:
    for _ in range(5):
        bench.tick()
    assert sent == []
    assert bench.fake.asked == []
    assert bench.lab.figure_area.figure is None
    assert repr(bench.lab.panel) == "<LaboratoryPanel closed>"


def test_open_it_measures_and_draws(bench: Bench) -> None:
    bench.send(type="open", value=True)
    assert bench.lab.panel.form["views"] == [["fake", "Fake"], ["other", "Other"]]
    assert bench.lab.panel.form["question"] == "What is it?"
    assert [c["name"] for c in bench.lab.panel.form["controls"]] == ["of", "at"]
    bench.settle()
    assert bench.fake.drawn == ["one 0 light 696"]
    assert "one at 0" in bench.lab.figure_area._words.value
    assert bench.lab.panel.state == {"busy": "", "share": 0, "note": "at step 7", "again": True}


def test_every_message_is_answered(bench: Bench, sent: list[Any]) -> None:
    bench.send(type="open", value=False, seq="a-1")
    bench.send(type="nonsense", seq="a-2")
    answers = [message["content"] for _, message in sent if message.get("method") == "custom"]
    assert answers == [{"type": "seen", "seq": "a-1"}, {"type": "seen", "seq": "a-2"}]


def test_nothing_is_sent_when_nothing_is_new(bench: Bench, sent: list[Any]) -> None:
    bench.send(type="open", value=True)
    bench.settle()
    sent.clear()
    for _ in range(10):
        bench.tick()
    assert sent == []


def test_a_slider_moves_the_figure_at_once_and_the_form_later(
    bench: Bench, sent: list[Any]
) -> None:
    bench.send(type="open", value=True)
    bench.settle()
    sent.clear()
    bench.send(type="set", name="at", value=2, sliding=True)
    assert bench.lab.figure_area.figure.layout.title.text == "at 2"
    assert "one at 2" in bench.lab.figure_area._words.value
    assert "LaboratoryPanel" not in [name for name, m in sent if m.get("method") == "update"]
    bench.send(type="set", name="at", value=2)  # the slider is let go
    assert bench.lab.panel.form["controls"][1]["value"] == 2
    bench.tick()
    assert len(bench.fake.drawn) == 1, "it was drawn already"
    assert len(bench.fake.asked) == 1


def test_a_view_that_cannot_move_in_place_is_drawn_anew(bench: Bench) -> None:
    bench.fake.in_place = False
    bench.send(type="open", value=True)
    bench.settle()
    bench.send(type="set", name="at", value=1, sliding=True)
    assert bench.fake.drawn == ["one 0 light 696", "one 1 light 696"]


def test_another_value_is_measured_and_the_old_figure_turns_pale(bench: Bench) -> None:
    bench.send(type="open", value=True)
    bench.settle()
    bench.fake.gate.clear()
    bench.send(type="set", name="of", value="two")
    until(lambda: (bench.tick(), bench.lab.panel.state["busy"] == "at two")[1])
    assert bench.lab.panel.state["share"] == 0.25
    assert not bench.lab.panel.state["again"]
    assert "ll-stale-figure" in bench.lab.figure_area._dom_classes
    bench.fake.gate.set()
    bench.settle()
    assert "ll-stale-figure" not in bench.lab.figure_area._dom_classes
    assert bench.fake.drawn[-1] == "two 0 light 696"


def test_theme_and_width_are_followed(bench: Bench) -> None:
    bench.send(type="open", value=True)
    bench.settle()
    bench.tick(theme="dark", width=500)
    bench.tick(theme="dark", width=5000)
    bench.tick(theme="dark", width=100)
    assert bench.fake.drawn[1:] == ["one 0 dark 496", "one 0 dark 900", "one 0 dark 200"]


def test_tabs_keep_what_they_measured(bench: Bench) -> None:
    bench.send(type="open", value=True)
    bench.settle()
    bench.send(type="view", name="other")
    assert bench.lab.panel.form["view"] == "other"
    assert bench.lab.figure_area.layout.display == "none"  # not the other view's figure
    bench.settle()
    bench.send(type="view", name="fake")
    bench.settle()
    assert len(bench.fake.asked) == 1
    assert len(bench.fake.drawn) == 2
    bench.send(type="view", name="no such view")
    assert bench.lab.panel.form["view"] == "fake"


def test_the_run_that_went_on_is_said_and_looked_at_again(bench: Bench) -> None:
    bench.send(type="open", value=True)
    bench.settle()
    bench.step = 12
    bench.tick()
    assert bench.lab.panel.state["note"] == "at step 7; the run is at step 12"
    bench.send(type="again")
    bench.settle()
    assert len(bench.fake.asked) == 2


def test_errors_are_shown_and_leave_the_rest_alone(bench: Bench) -> None:
    bench.fake.error = AdapterError("that adapter belongs to another base; name another folder")
    bench.send(type="open", value=True)
    bench.settle()
    assert bench.lab.panel.problem["message"].startswith("that adapter belongs")
    bench.send(type="view", name="other")
    bench.settle()
    assert bench.lab.panel.problem is None
    bench.send(type="view", name="fake")
    assert bench.lab.panel.problem is not None
    bench.fake.error = None
    bench.send(type="set", name="of", value="two")
    bench.settle()
    assert bench.lab.panel.problem is None


def test_a_figure_that_cannot_be_drawn_is_an_error_in_the_panel(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> go.Figure:
        raise ValueError("no colour")

    monkeypatch.setattr(bench.fake, "figure", fail)
    bench.send(type="open", value=True)
    bench.settle()
    assert bench.lab.panel.problem["message"] == "ValueError: no colour"
    monkeypatch.undo()
    bench.tick(theme="dark")
    bench.tick(theme="dark")
    assert bench.lab.panel.problem is None


def test_nonsense_from_the_browser_is_refused(bench: Bench) -> None:
    bench.send(type="open", value=True)
    bench.settle()
    bench.send(type="set", name="at", value="far")
    assert "ValueError" in bench.lab.panel.problem["message"]
    bench.send(type="set", name="at", value=99)
    assert bench.lab.panel.form["controls"][1]["value"] == 2
    bench.send(type="set", name="of", value="nobody")
    assert bench.lab.panel.form["controls"][0]["value"] == "one"
    bench.tick()
    assert bench.lab.panel.problem is None


def test_cancel_and_close_end_the_measurement(bench: Bench) -> None:
    bench.fake.gate.clear()
    bench.send(type="open", value=True)
    until(lambda: (bench.tick(), bench.lab.panel.state.get("busy") == "at one")[1])
    bench.send(type="cancel")
    until(lambda: (bench.tick(), bench.lab.panel.state["busy"] == "")[1])
    assert bench.lab.panel.problem is None
    bench.send(type="again")
    until(lambda: (bench.tick(), len(bench.fake.asked) == 2)[1])
    watch = bench.lab._jobs.watch
    bench.send(type="open", value=False)
    assert watch.cancelled
    assert bench.lab.panel.form["open"] is False
    assert bench.lab.figure_area.layout.display == "none"


def test_opened_again_it_measures_what_closing_cut_off(bench: Bench) -> None:
    bench.fake.gate.clear()
    bench.send(type="open", value=True)
    bench.send(type="open", value=False)
    bench.fake.gate.set()
    bench.send(type="open", value=True)
    bench.settle()
    until(lambda: (bench.tick(), bench.fake.drawn)[1])


def test_every_view_asks_a_question_of_its_own() -> None:
    assert len({view.key for view in VIEWS}) == len({view.question for view in VIEWS}) == 7
    assert all(view.question.endswith((".", "?")) for view in VIEWS)
