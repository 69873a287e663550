"""Tokens in an error's text do not reach the browser, nor the notebook's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import RunError
from lora_lab_widgets import Workbench
from lora_lab_widgets.run_panel import RunPanel
from tests.helpers.fake_session import FakeSession, tiny_plan
from tests.helpers.tiny_chat import tiny_chat_model

TOKEN = "hf_aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3h"
SAID = f"Authorization: Bearer {TOKEN[3:]}, once more: {TOKEN}"
TICK = {"type": "tick", "seq": "a-1", "theme": "light", "width": 1000}
START = {"type": "command", "name": "start", "seq": "a-2", "settings": {}}


@pytest.mark.parametrize("kind", [RunError, ValueError])
@pytest.mark.parametrize("place", ["read", "command", "view"])
def test_the_strip_shows_no_token(place: str, kind: type[Exception]) -> None:
    told: list[Any] = []

    def fail(where: str) -> None:
        if where == place and told:
            raise kind(SAID)

    class Session(FakeSession):
        @property
        def run(self) -> None:
            fail("read")

    session: Any = Session(plan=tiny_plan(), command=lambda *_: fail("command"))
    panel = RunPanel(session)
    panel.beat = lambda *_: fail("view")
    told.append(True)
    panel._handle(START)
    panel._handle(TICK)
    problem = json.dumps(panel.snapshot["problem"])
    assert "[redacted]" in problem
    assert TOKEN[3:] not in problem


def test_a_failed_run_shows_no_token_in_the_workbench(tmp_path: Path) -> None:
    wb = Workbench(*tiny_chat_model(), output_dir=tmp_path, max_steps=4, eval_examples=0)

    def refuse(*_: object) -> None:
        raise ConnectionError(SAID)

    wb.lm.model.lm_head.register_forward_hook(refuse)
    run = wb.start()
    assert run.wait(60)
    wb.panel._handle(TICK)
    assert "[redacted]" in wb.panel.snapshot["problem"]["message"]
    panels = (wb.panel, wb.history, wb.try_it, wb.sweep_panel, wb.savings, wb.header)
    texts = [*(panel.get_state() for panel in panels), repr(wb), wb.fallback_html()]
    shown = json.dumps(texts, default=repr)
    assert TOKEN[3:] not in shown
