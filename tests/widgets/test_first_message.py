"""What a panel tells a page before anything else: enough to draw it."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab_widgets.run_panel import RunPanel
from tests.helpers.run_desk import Desk


def test_the_first_message_has_all_that_a_page_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is slow draws it before the next one has come; Start takes what it shows."""
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(RunPanel, "open", lambda panel: opened.append(panel.get_state()))
    panel = Desk(None).panel()
    drawn = ("settings", "tasks", "methods", "fields", "plan", "snapshot", "clock", "bench")
    (first,), now = opened, panel.get_state()
    assert {name: first[name] for name in drawn} == {name: now[name] for name in drawn}
    assert first["settings"]
    assert first["clock"] != Desk(None).panel().clock
