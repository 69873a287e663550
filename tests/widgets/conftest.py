"""What the widgets' tests share."""

from __future__ import annotations

from typing import Any

import pytest
from ipywidgets import Widget


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
