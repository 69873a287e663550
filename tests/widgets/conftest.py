"""What the widgets' tests share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ipywidgets
import pytest
from ipywidgets import Widget

from lora_lab.models import LoadedModel
from lora_lab.tasks import Task
from lora_lab.tasks.embedded.api import EMBEDDED
from lora_lab.training import planned_cost

ANSWERING = {"_handle_msg", "_receive", "_beat"}
IN_PLACE = "_open_in_place"  # in marimo a cell does that


def answering() -> bool:
    """Whether a message of the browser is answered on this thread."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_name not in {*ANSWERING, IN_PLACE}:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name != IN_PLACE


@pytest.fixture(scope="session", autouse=True)
def one_mini_e2e() -> Iterator[None]:
    """Make the bench's own task once, and look for its longest example once a tokenizer.

    That is two thirds of what a bench of a tiny model takes.
    """
    own, find = EMBEDDED["mini-e2e"], planned_cost.longest_and_labels
    known: dict[tuple[Any, ...], Any] = {}

    def longest_and_labels(lm: LoadedModel, task: Task, max_length: int) -> Any:
        tokenizer: Any = lm.tokenizer
        if tokenizer is None:
            return find(lm, task, max_length)
        about = tokenizer.chat_template, len(tokenizer), tokenizer.eos_token, max_length
        # The objects are kept, so that no other one gets their ids.
        config = getattr(lm.model, "config", None)
        held = getattr(config, "is_encoder_decoder", None), *about, *map(_ById, (tokenizer, task))
        if held not in known:
            known[held] = find(lm, task, max_length)
        return known[held]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EMBEDDED, "mini-e2e", own._replace(make=functools.cache(own.make)))
        patch.setattr(planned_cost, "longest_and_labels", longest_and_labels)
        yield


class _ById:
    """Something as a key, whether or not it can be hashed: equal to itself alone."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


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


def _nothing(*_: Any, **__: Any) -> None:
    pass


@pytest.fixture(autouse=True)
def a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel, for ipywidgets 7, which sends nothing where there is none; 8 always does."""
    if int(ipywidgets.__version__.partition(".")[0]) > 7:
        return
    from ipykernel.comm import Comm

    nothing = SimpleNamespace(send=_nothing)
    comms = SimpleNamespace(register_comm=_nothing, unregister_comm=_nothing)
    kernel = SimpleNamespace(session=nothing, comm_manager=comms, iopub_socket=None)
    kernel.get_parent = lambda *_: {}
    monkeypatch.setattr(Comm, "kernel", kernel)


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
