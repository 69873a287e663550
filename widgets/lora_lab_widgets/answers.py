"""What a model answers to a prompt, without its adapter and with it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lora_lab.methods.attached import activate, active, bare
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.framing import CHAT
from lora_lab.tasks.prompts import GenerationTask

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task


def asked_as(task: Task, lm: LoadedModel, adapted: bool) -> Task:
    """Return the task that says what goes around a prompt that somebody typed.

    An adapter is asked as it was trained. As long as there is none, an instruct model is asked in
    its own chat template.
    """
    instruct = getattr(lm.tokenizer, "chat_template", None) is not None
    if adapted or not instruct or lm.model.config.is_encoder_decoder:
        return task
    return dataclasses.replace(task, template=CHAT) if isinstance(task, GenerationTask) else task


def answers(
    lm: LoadedModel,
    task: Task,
    prompt: str,
    max_new_tokens: int,
    longest_text: int,
    adapter: str | None,
) -> tuple[str, str | None]:
    """Return the base model's answer and the adapted one's; None where there is no adapter.

    The model must be at rest; the adapter that is active is so again afterwards.

    Args:
        lm: the model.
        task: tells how the model reads and answers.
        prompt: what was typed.
        max_new_tokens: of an answer in words.
        longest_text: tokens of a text under a head.
        adapter: its name; None: there is none.
    """
    model = lm.model
    family = family_of(task, lm)(lm, task, longest_text)
    with bare(model):  # a cell that asks meanwhile is answered by what is in force
        base = family.answer(prompt, max_new_tokens)
    if adapter is None:
        return base, None
    before = active(model)
    activate(model, adapter)
    try:
        return base, family.answer(prompt, max_new_tokens)
    finally:
        activate(model, before)
