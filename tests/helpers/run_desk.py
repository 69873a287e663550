"""What stands behind a run panel, faked, and the messages that go out of it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.message_throttle import MessageThrottle
from lora_lab_widgets.run_panel import RunPanel
from tests.helpers.fake_session import tiny_plan


class Recorder:
    """The messages that a widget sends to the browser."""

    def __init__(self, widget: Any) -> None:
        self.messages: list[dict[str, Any]] = []
        widget._send = lambda message, buffers=None: self.messages.append(message)

    def sizes(self) -> list[int]:
        return [len(json.dumps(m, allow_nan=False).encode()) for m in self.messages]


class Desk:
    """A fake of what stands behind the panel: a snapshot to read, commands received."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.snapshot = snapshot
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None
        self.notes: list[str] = []
        self.plan = tiny_plan()
        self.bench, self.used = "", None
        self.throttle = MessageThrottle()

    @property
    def run(self) -> Any:
        if self.snapshot is None:
            return None
        return SimpleNamespace(snapshot=self.snapshot, notes=self.notes)

    def command(self, name: str, settings: dict[str, Any]) -> None:
        if self.error:
            raise self.error
        self.commands.append((name, settings))

    def panel(self, **kwargs: Any) -> RunPanel:
        return RunPanel(self, **kwargs)  # type: ignore[arg-type]


def tick(panel: RunPanel, seq: str = "a-1", theme: str = "light", width: int = 1000) -> None:
    panel._handle({"type": "tick", "seq": seq, "theme": theme, "width": width})
