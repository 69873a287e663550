"""What waits while a tick is at work, in which order it leaves, and what never waits."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lora_lab_widgets.message_throttle import MOST, SPAN, Line, MessageThrottle, at_once


class Clock:
    """A time that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> MessageThrottle:
    return MessageThrottle(clock)


def values(sent: list[Any]) -> list[str]:
    return [message["state"]["value"] for _, message in sent]


def test_outside_of_a_tick_nothing_waits(sent: list[Any]) -> None:
    Line().value = "at once"
    assert values(sent)[-1] == "at once"


def test_changes_of_one_widget_leave_as_one_message_with_the_newest(
    throttle: MessageThrottle, sent: list[Any]
) -> None:
    line = Line()
    sent.clear()
    with throttle.collect():
        line.value = "first"
        line.value = "second"
    assert sent == []
    throttle.deliver()
    assert values(sent) == ["second"]
    throttle.deliver()
    assert len(sent) == 1


def test_what_has_no_room_goes_later_in_its_turn(
    throttle: MessageThrottle, clock: Clock, sent: list[Any]
) -> None:
    lines = [Line() for _ in range(MOST + 1)]
    sent.clear()
    with throttle.collect():
        for number, line in enumerate(lines):
            line.value = str(number)
    throttle.deliver()
    assert values(sent) == [str(n) for n in range(MOST)]
    with throttle.collect():
        lines[0].value = "again"  # behind the one that waits
    clock.now += SPAN + 0.01
    throttle.deliver()
    assert values(sent)[MOST:] == [str(MOST), "again"][:MOST]


def test_what_people_do_does_not_wait(throttle: MessageThrottle, sent: list[Any]) -> None:
    line = Line()
    sent.clear()
    with throttle.collect():
        with at_once():
            line.value = "resized"
        assert values(sent) == ["resized"]
        line.value = "of the tick"
    assert values(sent) == ["resized"]


def test_another_thread_is_not_held_back(throttle: MessageThrottle, sent: list[Any]) -> None:
    line = Line()
    sent.clear()
    with throttle.collect():
        thread = threading.Thread(target=lambda: setattr(line, "value", "from a cell"))
        thread.start()
        thread.join()
    assert values(sent) == ["from a cell"]


def test_an_error_in_a_tick_ends_the_waiting(throttle: MessageThrottle, sent: list[Any]) -> None:
    line = Line()
    with pytest.raises(RuntimeError), throttle.collect():
        raise RuntimeError
    sent.clear()
    line.value = "after it"
    assert values(sent) == ["after it"]
