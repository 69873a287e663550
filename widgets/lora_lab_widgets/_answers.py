"""What a model answers to a prompt, without its adapter and with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.methods.attached import activate, active, attached
from lora_lab.tasks.classification import ClassificationTask
from lora_lab.tasks.classifying import classify
from lora_lab.tasks.generation import generate
from lora_lab_widgets.live_adapter import ADAPTER

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.base import Task


def answers(
    lm: LoadedModel,
    task: Task | ClassificationTask,
    prompt: str,
    max_new_tokens: int,
    longest_text: int,
) -> tuple[str, str | None]:
    """Return the base model's answer and the adapted one's; None where there is no adapter.

    The model must be at rest; the adapter that is active is so again afterwards.

    Args:
        lm: the model.
        task: tells how a prompt is put, or which classes there are.
        prompt: what was typed.
        max_new_tokens: of an answer in words.
        longest_text: tokens of a text to classify.
    """
    model, tokenizer = lm.model, lm.tokenizer

    def answer(name: str | None) -> str:
        activate(model, name)
        if isinstance(task, ClassificationTask):
            found = classify(model, tokenizer, task, prompt, longest_text)
            return f"{found.label} ({found.probability:.0%})"
        text = [task.prompt_text(prompt)]
        return generate(model, tokenizer, text, max_new_tokens=max_new_tokens)[0]

    before = active(model)
    try:
        return answer(None), answer(ADAPTER) if ADAPTER in attached(model) else None
    finally:
        activate(model, before)
