"""Messages of the browser beside a busy cell, with ipykernel's own routing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ipykernel
import ipywidgets
import pytest
from ipykernel.comm import comm as kernel_comm

from lora_lab_widgets import TryIt
from lora_lab_widgets.message_throttle import Line, Picker

comm = pytest.importorskip("comm", reason="ipykernel 6.17 has neither this nor subshells")
pytestmark = pytest.mark.skipif(
    ipykernel.version_info < (7, 4), reason="it has no subshells, or no note of whom one answers"
)

PAGES = "the page's own thread"


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A kernel whose main thread is at work on a cell."""
    at_work = SimpleNamespace(
        session=SimpleNamespace(send=lambda *_, **__: None),
        iopub_socket=None,
        get_parent=lambda: {"header": {"msg_id": "of the cell"}},
    )
    instance = SimpleNamespace(initialized=lambda: True, instance=lambda: at_work)
    monkeypatch.setattr(kernel_comm, "Kernel", instance)
    monkeypatch.setattr(comm, "create_comm", kernel_comm.BaseComm)
    return at_work


def next_message_goes_to(widget: ipywidgets.Widget, content: Any = None) -> Any:
    return widget.comm._reply_subshell_for(content or {"method": "custom"}, PAGES)


def test_an_ordinary_widget_waits_for_the_cell_that_made_it() -> None:
    assert next_message_goes_to(ipywidgets.IntSlider()) is None  # the main thread


def test_ours_is_heard_from_its_first_message_on() -> None:
    panel = TryIt(lambda prompt, tokens: ("", ""))
    assert next_message_goes_to(panel) == PAGES
    panel.send({"type": "seen"})
    assert next_message_goes_to(panel) == PAGES
    panel.prompt = "changed by the cell"
    assert next_message_goes_to(panel) == PAGES
    picker = Picker(options=["a", "b"])
    picker.value = "b"
    assert next_message_goes_to(picker) == PAGES


@pytest.mark.parametrize("kind", [Line, Picker, TryIt])
def test_the_thread_of_a_page_that_is_gone_gets_nothing(
    kernel: SimpleNamespace, kind: type[ipywidgets.Widget]
) -> None:
    """A page that came after it asks such a widget for its state, and waits for the answer."""
    widget = kind(lambda *_: ("", "")) if kind is TryIt else kind()
    kernel.get_parent = lambda: {"header": {"msg_id": "a tick", "subshell_id": "gone"}}
    widget.send_state()
    assert next_message_goes_to(widget, {"method": "request_state"}) == PAGES


def test_what_the_kernel_asked_is_answered_where_it_asked() -> None:
    panel = TryIt(lambda prompt, tokens: ("", ""))
    panel._send({"method": "custom", "content": {"id": "question"}})
    answer = {"method": "custom", "content": {"id": "question"}}
    assert next_message_goes_to(panel, answer) is None


def test_a_widget_without_a_browser_sends_nothing() -> None:
    panel = TryIt(lambda prompt, tokens: ("", ""))
    panel.close()
    panel.send({"type": "seen"})
    assert panel.comm is None
