"""What the widgets' tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from ipywidgets import Widget

ANSWERING = {"_handle_msg", "_receive", "_beat"}


def answering() -> bool:
    """Whether a message of the browser is answered on this thread."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_name not in ANSWERING:
        frame = frame.f_back
    return frame is not None


@pytest.fixture(autouse=True)
def no_widget_is_made_in_a_message() -> Iterator[None]:
    """A widget that is made while a message is answered is unknown to marimo's page."""
    made: list[str] = []

    def note(widget: Widget) -> None:
        if answering():
            made.append(type(widget).__name__)

    Widget.on_widget_constructed(note)
    yield
    Widget.on_widget_constructed(None)
    assert not made, f"made while a message was answered: {', '.join(made)}"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect what any widget sends from now on."""
    messages: list[Any] = []
    monkeypatch.setattr(
        Widget,
        "_send",
        lambda widget, message, buffers=None: messages.append((type(widget).__name__, message)),
    )
    return messages
