"""Views of "Analyze ΔW" that measure nothing real, and what drives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import plotly.graph_objects as go

from lora_lab_widgets.lab_views.base import Measured, Theme, Values, View, Watch


class FakeView(View):
    """Measures its value "of", when `gate` lets it; tells what it was asked."""

    key: ClassVar[str] = "fake"
    title: ClassVar[str] = "Fake"
    question: ClassVar[str] = "What is it?"
    drawn_only: ClassVar[frozenset[str]] = frozenset({"at"})

    def __init__(self) -> None:
        super().__init__(None, None, Path())  # type: ignore[arg-type]
        self.values = {"of": "one", "at": 0}
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        self.live_at: Any = None
        self.drawn: list[str] = []
        self.in_place = True
        self.off = False

    def controls(self) -> list[dict[str, Any]]:
        options = [("one", "one"), ("two", "two"), ("three", "three")]
        return [self.choice("of", "of", options), self.slider("at", "at", ["a", "b", "c"])]

    def wanted(self) -> tuple[Any, ...] | None:
        return None if self.off else super().wanted()

    def live(self, snapshot: Any) -> Any:
        return self.live_at

    def measure(self, values: Values, before: Any, watch: Watch) -> Measured:
        self.asked.append((values["of"], before))
        while not self.gate.wait(0.005):
            watch.tell(f"at {values['of']}", 1, 4)
        watch.tell("done")
        if self.error:
            raise self.error
        return Measured(values["of"], 7)

    def figure(self, data: Any, theme: Theme, width: int) -> Any:
        self.drawn.append(f"{data} {self.values['at']} {theme} {width}")
        return go.Figure(go.Scatter(y=[1, 2]), {"height": 100, "width": width})

    def redraw(self, figure: Any, data: Any) -> bool:
        if self.in_place:
            figure.layout.title.text = f"at {self.values['at']}"
        return self.in_place

    def words(self, data: Any) -> str:
        return f"{data} at {self.values['at']}"


class OtherView(FakeView):
    """Another one."""

    key: ClassVar[str] = "other"
    title: ClassVar[str] = "Other"


def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
