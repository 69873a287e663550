"""What a workbench shows before anybody has chosen anything: model, tasks, prompt and config."""

from __future__ import annotations

from lora_lab.anatomy.types import Anatomy
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.embedded.api import EMBEDDED

PAPER = LoraConfig(r=8, lora_alpha=16, target_modules=("q", "v"))


def task_choice(given: Task) -> list[str]:
    """Return the tasks to choose from: those of its kind; a head is for one of them only."""
    same = [name for name, entry in EMBEDDED.items() if isinstance(given, entry.kind)]
    return list(dict.fromkeys([given.name, *([] if given.head else same)]))


def example_prompt(task: Task) -> str:
    """Return a held-out prompt or text to try; "" where the task has none."""
    return task.input_text(task.validation[0]) if task.validation else ""


def first_config(anatomy: Anatomy) -> LoraConfig:
    """Return the paper's q and v at r=8 where the model has them, else every matrix at r=8."""
    if {"q", "v"} <= set(anatomy.roles):
        return PAPER
    return PAPER.replace(target_modules="all-linear")
