"""Base against adapted, without a browser: threads, delivery, errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lora_lab.errors import RunError
from lora_lab_widgets.panel import Tick
from lora_lab_widgets.try_it import TryIt


def wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited 10 s in vain"
        time.sleep(0.005)


def finish(panel: TryIt) -> None:
    def tick() -> bool:
        panel.update(Tick())
        return panel.busy == ""

    wait(tick)


def ask(panel: TryIt, prompt: str = "hello", tokens: Any = 7) -> None:
    panel._handle_custom_msg({"type": "compare", "prompt": prompt, "max_new_tokens": tokens}, [])


def test_answers_come_with_the_heartbeat_never_from_the_thread() -> None:
    ran_on: list[int] = []

    def answer(prompt: str, tokens: int) -> tuple[str, str]:
        ran_on.append(threading.get_ident())
        return f"base {prompt} {tokens}", f"adapted {prompt} {tokens}"

    panel = TryIt(answer)
    ask(panel)
    assert panel.busy == "generating…"
    wait(lambda: panel._job._outcome)
    assert (panel.busy, panel.answers) == ("generating…", {})  # nobody asked yet
    panel.update(Tick())
    assert panel.busy == ""
    seconds = panel.answers["seconds"]
    assert panel.answers == {
        "prompt": "hello",
        "base": "base hello 7",
        "adapted": "adapted hello 7",
        "seconds": seconds,
        "of": "",
    }
    assert 0 <= seconds < 10
    assert ran_on != [threading.get_ident()]


def test_one_comparison_at_a_time_and_what_it_is_at() -> None:
    leave = threading.Event()
    calls: list[str] = []

    def answer(prompt: str, tokens: int) -> tuple[str, str]:
        calls.append(prompt)
        panel.say("waiting for the next step…")
        assert leave.wait(10)
        return "", ""

    panel = TryIt(answer)
    assert panel.compare("first")
    wait(lambda: calls)
    panel.update(Tick())
    assert panel.busy == "waiting for the next step…"
    assert not panel.compare("second")
    ask(panel, "third")
    leave.set()
    finish(panel)
    assert calls == ["first"]
    assert panel.compare("fourth")
    finish(panel)
    assert panel.answers["prompt"] == "fourth"


def test_errors_are_shown_and_the_next_comparison_clears_them() -> None:
    errors: list[Exception] = [RunError("the run is stopping; try again"), ValueError("shape")]

    def answer(prompt: str, tokens: int) -> tuple[str, str]:
        if errors:
            raise errors.pop(0)
        return "a", "b"

    panel = TryIt(answer)
    ask(panel)
    finish(panel)
    assert panel.problem["message"] == "the run is stopping; try again"
    assert panel.problem["details"] == ""
    ask(panel)
    assert panel.problem is None
    finish(panel)
    assert panel.problem["message"] == "ValueError: shape"
    assert "in answer" in panel.problem["details"]
    ask(panel)
    finish(panel)
    assert panel.problem is None
    assert panel.answers["base"] == "a"


def test_a_bad_length_starts_nothing() -> None:
    calls: list[str] = []

    def answer(prompt: str, tokens: int) -> tuple[str, str]:
        calls.append(prompt)
        return "", ""

    panel = TryIt(answer)
    for tokens in ("many", 0, 100_000, None):
        ask(panel, tokens=tokens)
        assert "whole number from 1 to 512" in panel.problem["message"]
        assert panel.problem["field"] == "max_new_tokens"
    assert (calls, panel.busy, panel.max_new_tokens) == ([], "", 48)


def test_no_adapter_yet_is_no_text() -> None:
    panel = TryIt(lambda prompt, tokens: ("base", None))
    ask(panel)
    finish(panel)
    assert panel.answers["adapted"] is None


def test_update_sends_nothing_while_nothing_happens() -> None:
    panel = TryIt(lambda prompt, tokens: ("", ""))
    sent: list[Any] = []
    panel._send = lambda message, buffers=None: sent.append(message)
    for _ in range(5):
        panel.update(Tick())
    assert sent == []


def test_answers_of_another_adapter_are_never_shown_as_this_ones() -> None:
    now: list[tuple[str, object]] = [("run a", 1)]
    panel = TryIt(lambda prompt, tokens: ("base", "of a"), whose=lambda: now[0])
    panel.update(Tick())
    assert not panel.outdated, "nothing was answered yet"
    ask(panel)
    finish(panel)
    assert (panel.answers["of"], panel.outdated) == ("run a", False)
    now[0] = "run b", 2
    panel.update(Tick())
    assert (panel.answers["of"], panel.outdated) == ("run a", True)
    ask(panel)
    finish(panel)
    assert (panel.answers["of"], panel.outdated) == ("run b", False)
    now[0] = "", None  # taken off
    panel.update(Tick())
    assert panel.outdated


def test_a_run_that_begins_while_it_answers_spoils_the_answers() -> None:
    now: list[tuple[str, object]] = [("run a", 1)]

    def answer(prompt: str, tokens: int) -> tuple[str, str]:
        now[0] = "run b", 2
        return "base", "whose?"

    panel = TryIt(answer, whose=lambda: now[0])
    ask(panel)
    finish(panel)
    assert panel.answers == {}
    assert panel.problem["message"] == ("another run began while the model answered; compare again")
