"""A workbench with an instruct model: how what somebody types is framed; chats as its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_lab.tasks import Chat, ChatTask, generation
from lora_lab.tasks.families import causal
from lora_lab_widgets import Workbench
from lora_lab_widgets.panel import Tick
from tests.helpers.chat_templates import CHATML, turns
from tests.helpers.tiny_chat import tiny_chat_model

QUICK: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_examples": 0}
AS_A_CHAT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
CHATS = [Chat(tuple(turns(f"q{i}", "a"))) for i in range(3)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that the model is given to go on from."""
    seen: list[str] = []

    def generate(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> list[str]:
        seen.extend(p if isinstance(p, str) else tokenizer.decode(p) for p in prompts)
        return generation.generate(model, tokenizer, prompts, **options)

    monkeypatch.setattr(causal, "generate", generate)
    return seen


def bench(folder: Path, template: str | None, **options: Any) -> Workbench:
    model, tokenizer = tiny_chat_model()
    tokenizer.chat_template = template
    return Workbench(model, tokenizer, output_dir=folder, **QUICK, **options)


def framing(wb: Workbench) -> str:
    wb.try_it.update(Tick())
    return str(wb.try_it.framing)


def test_an_instruct_model_is_asked_in_its_template_until_an_adapter_was_trained_otherwise(
    tmp_path: Path, asked: list[str]
) -> None:
    wb = bench(tmp_path, CHATML)
    assert framing(wb) == "the model's chat template"
    assert wb.session.answer("hi", 2)[1] is None
    wb.start().result()
    assert framing(wb) == "the prompt on a line of its own"
    assert wb.session.answer("hi", 2)[1] is not None
    assert asked == [AS_A_CHAT, "hi\n", "hi\n"]


def test_a_model_without_a_template_is_asked_as_the_task_does(
    tmp_path: Path, asked: list[str]
) -> None:
    wb = bench(tmp_path, None)
    assert framing(wb) == "the prompt on a line of its own"
    wb.session.answer("hi", 2)
    assert asked == ["hi\n"]


def test_chats_train_on_the_workbench_and_are_answered_as_such(
    tmp_path: Path, asked: list[str]
) -> None:
    wb = bench(tmp_path, CHATML, task=ChatTask("chats", True, CHATS[:2], CHATS[2:]))
    assert (wb.try_it.prompt, framing(wb)) == ("q2", "the model's chat template")
    assert wb.try_it.writes
    wb.start().result()
    assert wb.session.answer("hi", 2)[1] is not None
    assert asked == [AS_A_CHAT, AS_A_CHAT]
