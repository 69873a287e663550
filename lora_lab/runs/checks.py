"""Whether a model can be trained on a task; asked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_lab.configs import (
    AdaLoraConfig,
    LoraConfig,
    MethodConfig,
    TrainingConfig,
    method_name,
)
from lora_lab.errors import ConfigError
from lora_lab.heads import head_modules, is_classifier
from lora_lab.runs.reporters import check_reporters
from lora_lab.tasks import ClassificationTask, Task
from lora_lab.tasks.classification import some

if TYPE_CHECKING:
    from lora_lab.models import LoadedModel


def check(lm: LoadedModel, task: Task | ClassificationTask) -> None:
    """Refuse a model that the task is not for, that has no weights, or a task without examples.

    Raises:
        ConfigError: which of them, and what to do.
    """
    if isinstance(task, ClassificationTask):
        _check_classifier(lm, task)
    elif not lm.model.can_generate() or lm.tokenizer is None:
        raise ConfigError(
            f"{lm.card.name} ({type(lm.model).__name__}) generates no text, and {task.name} is "
            "prompt → completion; use a causal language model such as smollm2-135m"
        )
    if not len(task.train):
        raise ConfigError(f"task {task.name} has no training examples")
    if any(parameter.is_meta for parameter in lm.model.parameters()):
        raise ConfigError(f"{lm.card.name} has no weights; load a model that has some")


def check_settings(configs: Sequence[MethodConfig], training: TrainingConfig) -> None:
    """Refuse what the methods and the training together rule out.

    Raises:
        ConfigError: the line names the mend.
    """
    for config in configs:
        if isinstance(config, AdaLoraConfig):
            config.check_steps(training.max_steps)
    fast = (LoraConfig, AdaLoraConfig)
    if training.loraplus_lr_ratio is not None and not any(isinstance(c, fast) for c in configs):
        raise ConfigError(
            f"loraplus_lr_ratio is LoRA+'s rate of B, and {method_name(configs)} has no B; leave "
            "it out"
        )
    check_reporters(training.report_to)


def _check_classifier(lm: LoadedModel, task: ClassificationTask) -> None:
    model, name = lm.model, lm.card.name
    if not is_classifier(model) or not head_modules(model):
        raise ConfigError(
            f"{name} ({type(model).__name__}) has no classification head, and {task.name} is text "
            f"→ one of {len(task.labels)} classes; load it with load_model(…, labels=task.labels)"
        )
    if lm.tokenizer is None:
        raise ConfigError(
            f"{name} has no tokenizer; load one and use LoadedModel.given(model, tokenizer)"
        )
    if model.config.num_labels != len(task.labels):
        raise ConfigError(
            f"{name} has a head for {model.config.num_labels} classes and {task.name} has "
            f"{len(task.labels)} ({some(task.labels)}); load it with "
            "load_model(…, labels=task.labels)"
        )
    if getattr(model.config, "pad_token_id", None) is None:
        raise ConfigError(
            f"{name} knows no padding, so that it cannot tell where a text ends; set "
            "model.config.pad_token_id to the tokenizer's pad_token_id or eos_token_id"
        )
