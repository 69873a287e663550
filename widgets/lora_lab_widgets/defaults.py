"""What a workbench shows before anybody has chosen anything: model, tasks, prompt and config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.anatomy.types import Anatomy
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.models.load import LoadedModel, load_model
from lora_lab.tasks.base import Task
from lora_lab.tasks.classification import ClassificationTask, LabelledText

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAPER = LoraConfig(r=8, lora_alpha=16, target_modules=("q", "v"))


def loaded(
    model: str | Path | LoadedModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    task: Task | ClassificationTask,
) -> LoadedModel:
    """Return the model, with the head that a task of classes needs.

    Raises:
        ConfigError: a model of the user's own, without its tokenizer.
        ModelError: as `load_model`.
    """
    if isinstance(model, (str, Path)):
        if isinstance(task, ClassificationTask):
            return load_model(model, labels=task.labels)
        return load_model(model)
    if isinstance(model, LoadedModel):
        return model
    if tokenizer is None:
        raise ConfigError("a model of your own needs its tokenizer: Workbench(model, tokenizer)")
    return LoadedModel.given(model, tokenizer)


def task_choice(given: Task | ClassificationTask) -> list[str]:
    """Return the tasks to choose from: a head has the classes of one."""
    if isinstance(given, ClassificationTask):
        return [given.name]
    return list(dict.fromkeys([given.name, "mini-e2e"]))


def example_prompt(task: Task | ClassificationTask) -> str:
    """Return a held-out prompt or text to try; "" where the task has none."""
    if not task.validation:
        return ""
    first = task.validation[0]
    return first.text if isinstance(first, LabelledText) else first.prompt


def first_config(anatomy: Anatomy) -> LoraConfig:
    """Return the paper's q and v at r=8 where the model has them, else every matrix at r=8."""
    if {"q", "v"} <= set(anatomy.roles):
        return PAPER
    return PAPER.replace(target_modules="all-linear")
