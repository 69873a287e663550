"""What a workbench shows before anybody has chosen anything: model, tasks, prompt and config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.anatomy.types import Anatomy
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.models.load import LoadedModel, load_model
from lora_lab.tasks.base import Task
from lora_lab.tasks.embedded.api import EMBEDDED

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAPER = LoraConfig(r=8, lora_alpha=16, target_modules=("q", "v"))


def loaded(
    model: str | Path | LoadedModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task,
) -> LoadedModel:
    """Return the model, with the head that a task of classes needs.

    Raises:
        ConfigError: a model of the user's own, without its tokenizer.
        ModelError: as `load_model`.
    """
    if isinstance(model, (str, Path)):
        return load_model(model, **task.head)
    if isinstance(model, LoadedModel):
        return model
    if tokenizer is None:
        raise ConfigError("a model of your own needs its tokenizer: Workbench(model, tokenizer)")
    return LoadedModel.given(model, tokenizer)


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
