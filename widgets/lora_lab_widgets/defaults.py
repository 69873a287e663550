"""What a workbench shows before anybody has chosen anything: model, tasks, prompt and config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_lab._util.format import format_bytes
from lora_lab._util.hardware import best_device
from lora_lab._util.host_memory import available_memory
from lora_lab.anatomy.types import Anatomy
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.embedded.api import EMBEDDED

MODEL, DATA = "smollm2-135m", "mini-e2e"
"""What is chosen where nobody has chosen."""
SMALL = "mini-llama"  # in its place where memory is short
ROOM = 900_000_000  # bytes that a bench of it and a run that recomputes take beside the imports
RECOMPUTES = 2_000_000_000  # bytes below which a first plan recomputes: 600 MB less of that model
PAPER = LoraConfig(r=8, lora_alpha=16, target_modules=("q", "v"))


def first_model() -> tuple[str, str]:
    """Return the model that is taken where nobody has chosen, and a line on why it is another."""
    free = available_memory()
    if free is None or free >= ROOM:
        return MODEL, ""
    return SMALL, (
        f"{SMALL} is chosen, as {format_bytes(free)} of memory are free; {MODEL} takes about "
        f"{format_bytes(ROOM)} to train"
    )


def first_training(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a first plan's settings, and a line on what was added to those that were given."""
    free = available_memory()
    if best_device().type != "cpu":
        return dict(settings), ""
    if free is None or free >= RECOMPUTES or "gradient_checkpointing" in settings:
        return dict(settings), ""
    return {**settings, "gradient_checkpointing": True}, (
        f"gradient_checkpointing=True: {format_bytes(free)} of memory are free, so each block is "
        "computed again in the backward pass, which takes less memory and a third more time"
    )


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
