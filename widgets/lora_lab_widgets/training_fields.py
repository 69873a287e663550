"""The settings of training that the run panel shows: fields of `TrainingConfig`, in its words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from lora_lab.methods.config import need_count
from lora_lab.methods.descriptor import Field
from lora_lab.runs.training_config import Schedule, TrainingConfig


def _schedules() -> dict[str, Any]:
    return {kind: kind for kind in get_args(Schedule)}


TRAINING = (
    Field("max_steps", "steps", "optimizer steps", int),
    Field(
        "num_train_epochs",
        "epochs",
        "in place of steps: how often the examples are gone through",
        automatic=True,
    ),
    Field("per_device_train_batch_size", "batch", "examples in a forward pass", int),
    Field(
        "gradient_accumulation_steps",
        "accumulation",
        "forward passes of which an optimizer step adds up the gradients",
        int,
    ),
    Field("learning_rate", "learning rate", "peak rate of AdamW"),
    Field("lr_scheduler_type", "schedule", "of the rate, after warm-up", str, choices=_schedules),
    Field(
        "warmup_steps",
        "warm-up",
        "steps in which the learning rate rises from 0; below 1: a share of all steps",
    ),
    Field("max_length", "max length", "tokens of an example; longer ones are cut", int),
    Field(
        "eval_examples",
        "held-out",
        "held-out examples that are answered and scored before and after training; 0: none",
        int,
    ),
    Field(
        "eval_steps",
        "eval every",
        "held-out examples are scored every so many steps; empty: not",
        automatic=True,
    ),
    Field("seed", "seed", "of the adapter's start, the data's order and dropout", int),
    Field(
        "gradient_checkpointing",
        "recompute",
        "compute every block a second time in the backward pass: slower, and it takes less memory",
        bool,
    ),
    Field(
        "kept_texts",
        "kept texts",
        "texts that the base model writes, on which is measured what it keeps; 0: none",
        int,
        more=True,
    ),
    Field(
        "kept_data",
        "kept data",
        "a file or a task, on whose examples is measured likewise what is kept; empty: none",
        str,
        automatic=True,
        more=True,
    ),
    Field("weight_decay", "weight decay", "AdamW's, of all that is trained", more=True),
    Field("adam_beta1", "β₁", "AdamW's: how long the mean of the gradients is", more=True),
    Field("adam_beta2", "β₂", "AdamW's: how long the mean of their squares is", more=True),
    Field(
        "label_smoothing_factor",
        "label smoothing",
        "so much of every label is spread over all tokens or classes; 0: none",
        more=True,
    ),
    Field(
        "loraplus_lr_ratio",
        "LoRA+",
        "B learns at so many times the learning rate; LoRA+'s authors take 16; empty: at that rate",
        automatic=True,
        more=True,
    ),
    Field(
        "head_learning_rate",
        "head rate",
        "learning rate of the head, which begins at random; empty: that of all else",
        automatic=True,
        more=True,
    ),
    Field(
        "early_stopping_patience",
        "patience",
        "the run ends after so many evaluations in a row that are no better; empty: it does not",
        int,
        automatic=True,
        more=True,
    ),
    Field(
        "load_best_model_at_end",
        "keep the best",
        "the adapter that is saved is that of the best evaluation, not of the last step",
        bool,
        more=True,
    ),
    Field(
        "metric_for_best_model",
        "best by",
        "by which evaluation is best: the held-out loss, or one of the task's metrics",
        str,
        automatic=True,
        choices=dict,  # they are the task's
        more=True,
    ),
)
"""In the order of the form; those behind "more" last."""

NAMES = tuple(field.name for field in TRAINING)
_OPTIONAL = {field.name for field in TRAINING if field.automatic}


def training_values(training: TrainingConfig) -> dict[str, Any]:
    """Return how a run trains as the settings that show it: "" for None."""
    values = {name: getattr(training, name) for name in NAMES}
    if values["max_steps"] < 0:  # its epochs are not counted in steps yet
        values["max_steps"] = TrainingConfig().max_steps
    return {name: "" if value is None else value for name, value in values.items()}


def given_training(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what settings make fields of `TrainingConfig`; epochs take the place of steps.

    Raises:
        ConfigError: steps are -1, which to `TrainingConfig` means that nobody has said.
    """
    given = {
        name: value
        for name, value in values.items()
        if name not in _OPTIONAL or value not in ("", None)
    }
    if "num_train_epochs" in given:
        return given | {"max_steps": -1}
    if given.get("max_steps") == -1:
        need_count("max_steps", -1, least=1)
    return given
