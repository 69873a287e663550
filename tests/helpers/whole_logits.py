"""Logits as all others compute them: of prompt and padding too, in one piece."""

from __future__ import annotations

import pytest

from lora_lab.tasks import label_logits


@pytest.fixture
def whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all but the loss compared bit for bit with who computes it from the logits of all."""
    monkeypatch.setattr(label_logits, "output_layer", lambda _: (None, ""))
