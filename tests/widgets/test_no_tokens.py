"""Tokens in an error's text do not reach the browser, nor the notebook's file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ipywidgets
import pytest

from lora_lab.errors import RunError
from lora_lab_widgets import Workbench
from lora_lab_widgets.run_panel import RunPanel
from tests.helpers.fake_session import FakeSession, tiny_plan
from tests.helpers.tiny_chat import tiny_chat_model
from tests.helpers.tiny_run import tiny_lm, tiny_task

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


def test_no_secret_of_a_name_or_a_task_is_in_what_a_page_or_a_notebook_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PASSWORD", "pa55-word")
    lm, task = tiny_lm(), tiny_task()
    lm = dataclasses.replace(lm, card=dataclasses.replace(lm.card, name=f"m?token={TOKEN}"))
    task = dataclasses.replace(task, name="mine with pa55-word")
    settings = {"max_steps": 2, "eval_examples": 1, "max_length": 64}
    wb = Workbench(lm, task=task, output_dir=tmp_path, **settings)
    wb.start().wait(60)
    wb.panel._handle(TICK)
    states = ipywidgets.Widget.get_manager_state()["state"]
    code = "_esm", "_css"
    kept = [{k: v for k, v in one["state"].items() if k not in code} for one in states.values()]
    texts = [kept, repr(wb), wb._repr_mimebundle_(), repr(lm), task.describe(), repr(wb.run)]
    shown = json.dumps(texts, default=repr)
    assert "[redacted]" in shown
    assert "pa55-word" not in shown
    assert TOKEN not in shown
    assert wb.lm.card.name == f"m?token={TOKEN}"  # itself it stays what it is
