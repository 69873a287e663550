"""Another device's ways on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab._util import hardware as module
from lora_lab._util.hardware import Hardware


def cpu_can(monkeypatch: pytest.MonkeyPatch, kind: type[Hardware] = Hardware, **what: Any) -> None:
    """Have the CPU's `Hardware` be of another kind, or say something else of itself."""
    monkeypatch.setitem(module.MAKERS, "cpu", lambda device: kind(device, **what))
