"""Whether a model can be trained on a task; asked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from lora_lab.anatomy.api import anatomy
from lora_lab.errors import ConfigError
from lora_lab.methods.combined import method_name
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.registry import method_of
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.api import family_of
from lora_lab.training.trackers import check_trackers

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel


def check(lm: LoadedModel, task: Task) -> None:
    """Refuse a model that the task is not for, that has no weights, or a task without examples.

    Raises:
        ConfigError: which of them, and what to do.
    """
    family_of(task, lm).check(lm, task)
    if not len(task.train):
        raise ConfigError(f"task {task.name} has no training examples")
    if any(parameter.is_meta for parameter in lm.model.parameters()):
        raise ConfigError(f"{lm.card.name} has no weights; load a model that has some")


def check_settings(
    lm: LoadedModel,
    task: Task,
    configs: Sequence[MethodConfig],
    training: TrainingConfig,
) -> None:
    """Refuse what the methods, the model and the training together rule out.

    Raises:
        ConfigError: the line names the fix.
    """
    for config in configs:
        config.check_steps(training.max_steps)
        if config.modifies_base:
            _check_precision(lm.model, config)
    if family_of(task, lm).writes:  # texts under a head are cut to what there is room for
        _check_positions(lm.model, configs, training)
    if training.loraplus_lr_ratio is not None and not any(method_of(c).ranks for c in configs):
        raise ConfigError(
            f"loraplus_lr_ratio is LoRA+'s rate of B, and {method_name(configs)} has no B; leave "
            "it out"
        )
    check_trackers(training.report_to)


def _check_precision(model: nn.Module, config: MethodConfig) -> None:
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ConfigError(
            f"{config.method} trains the model's own float16 weights, in which Adam's moments "
            'underflow; load the model with dtype="bfloat16" or "float32"'
        )


def _check_positions(
    model: nn.Module, configs: Sequence[MethodConfig], training: TrainingConfig
) -> None:
    tokens = sum(config.tokens for config in configs)
    most = anatomy(model).shape.max_positions
    # Where the tokens alone are too many, `attach` says so.
    if tokens and most is not None and tokens < most < tokens + training.max_length:
        raise ConfigError(
            f"{tokens} learned tokens and max_length={training.max_length} do not fit the model's "
            f"{most} positions; use a max_length of at most {most - tokens}, or fewer learned "
            "tokens"
        )
