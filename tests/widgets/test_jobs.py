"""Measuring one thing at a time: the newest wish wins, errors are not tried again by themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lora_lab.errors import AdapterError
from lora_lab_widgets import jobs
from lora_lab_widgets.jobs import Jobs
from tests.helpers.fake_views import FakeView, OtherView, until


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LIVE_PAUSE", 0.0)
    monkeypatch.setattr(jobs, "LIVE_SHARE", float("inf"))


def settle(work: Jobs, view: Any) -> None:
    until(lambda: (work.update(view, None), work._doing is None)[1])


def test_measures_once_for_one_wish() -> None:
    work, view = Jobs(), FakeView()
    assert work.of(view) is None
    settle(work, view)
    assert work.of(view).data == "one"
    assert work.answers(view)
    for _ in range(5):
        assert not work.update(view, None)
    assert view.asked == [("one", None)]


def test_a_newer_wish_ends_the_older_one_and_gets_its_data() -> None:
    work, view = Jobs(), FakeView()
    settle(work, view)
    view.gate.clear()
    view.values["of"] = "two"
    work.update(view, None)
    assert work.busy
    assert not work.answers(view)
    until(lambda: work.watch.text == "at two")
    assert work.watch.share == 0.25
    view.values["of"] = "three"
    until(lambda: (work.update(view, None), len(view.asked) == 3)[1])
    view.gate.set()
    settle(work, view)
    assert view.asked == [("one", None), ("two", "one"), ("three", "one")]
    assert work.of(view).data == "three"


def test_what_only_changes_the_drawing_measures_nothing() -> None:
    work, view = Jobs(), FakeView()
    settle(work, view)
    view.values["at"] = 2
    settle(work, view)
    assert len(view.asked) == 1


def test_an_error_is_told_and_waits_for_another_wish() -> None:
    work, view, other = Jobs(), FakeView(), OtherView()
    view.error = AdapterError("no such site; pick another")
    settle(work, view)
    assert work.problem(view)["message"] == "no such site; pick another"
    assert work.problem(view)["details"] == ""
    settle(work, view)
    assert len(view.asked) == 1
    settle(work, other)
    assert work.problem(other) is None
    assert work.problem(view) is not None
    view.error = ValueError("shape")
    view.values["of"] = "two"
    settle(work, view)
    assert work.problem(view)["message"] == "ValueError: shape"
    assert "in measure" in work.problem(view)["details"]
    view.error = None
    work.again(view)
    settle(work, view)
    assert work.problem(view) is None
    assert work.of(view).data == "two"


def test_cancelled_is_cancelled_until_something_else_is_asked() -> None:
    work, view = Jobs(), FakeView()
    view.gate.clear()
    work.update(view, None)
    work.cancel()
    settle(work, view)
    assert not work.busy
    assert work.problem(view) is None
    assert len(view.asked) == 1
    view.gate.set()
    view.values["of"] = "two"
    settle(work, view)
    assert work.of(view).data == "two"


def test_a_view_that_was_left_keeps_what_came_for_it() -> None:
    work, view, other = Jobs(), FakeView(), OtherView()
    work.update(view, None)
    until(lambda: work._job._outcome)
    settle(work, other)
    assert work.of(view).data == "one"
    assert work.of(other).data == "one"


def test_following_a_run_is_silent_and_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LIVE_PAUSE", 0.2)
    work, view = Jobs(), FakeView()
    view.live_at = 1
    settle(work, view)
    start, step = time.monotonic(), 1
    while time.monotonic() - start < 0.7:
        step += 1
        view.live_at = step
        work.update(view, None)
        assert not work.busy, "nobody asked"
        time.sleep(0.005)
    assert 2 <= len(view.asked) - 1 <= 4


def test_a_slider_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SETTLED", 0.15)
    work, view = Jobs(), FakeView()
    start = time.monotonic()
    work.slide()
    until(lambda: (work.update(view, None), view.asked)[1])
    assert time.monotonic() - start >= 0.15


def test_nothing_wanted_ends_what_is_under_way() -> None:
    work, view = Jobs(), FakeView()
    view.gate.clear()
    work.update(view, None)
    view.off = True
    settle(work, view)
    assert work.of(view) is None


def test_another_adapter_makes_everything_old() -> None:
    work, view = Jobs(), FakeView()
    settle(work, view)
    work.forget()
    assert work.of(view) is None
    settle(work, view)
    assert len(view.asked) == 2
    view.gate.clear()
    work.again(view)
    work.update(view, None)
    work.forget()  # while it measures the old one
    view.gate.set()
    settle(work, view)
    until(lambda: (work.update(view, None), work.of(view))[1])
    assert work.answers(view)


def test_what_comes_late_for_an_adapter_that_is_gone_is_dropped() -> None:
    work, view = Jobs(), FakeView()
    work.update(view, None)
    until(lambda: work._job._outcome)
    work.forget()
    view.off = True
    assert work.update(view, None)
    assert work.of(view) is None
