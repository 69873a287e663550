"""Whether a model can be trained on a task; asked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora_lab._util.devices import devices_of
from lora_lab.anatomy.model_config import max_positions, position_limit
from lora_lab.anatomy.vocabulary import (
    embedded_rows,
    scored_rows,
    tokens_beyond,
    vocabulary_line,
)
from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import ConfigError, ModelError
from lora_lab.methods.api import refuse_inference_tensors
from lora_lab.methods.combined import method_name
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.modules_to_save import find_modules
from lora_lab.methods.registry import method_of
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.tasks.base import Task
from lora_lab.tasks.families.api import family_of
from lora_lab.tasks.families.base import NO_LIMIT, Family
from lora_lab.tasks.too_long import Tally, fit_examples
from lora_lab.training.data import RunData, run_family
from lora_lab.training.packed_base import check_packed
from lora_lab.training.replicas import check_together
from lora_lab.training.trackers import check_trackers

if TYPE_CHECKING:
    from lora_lab.models.load import LoadedModel

_FEW = 32  # examples that are encoded before every start


def check(lm: LoadedModel, task: Task) -> None:
    """Refuse a model that the task is not for, that has no weights, or a task without examples.

    Raises:
        ConfigError: which of them, and what to do.
        TaskError: examples that can be neither learned nor scored.
    """
    family_of(task, lm).check(lm, task)
    if not len(task.train):
        raise ConfigError(f"task {task.name} has no training examples")
    if task.head:  # what is written is learned from completions, and scored by references
        task.check(task.train, "training")
    task.check(task.validation, "validation")
    task.check(task.test, "test")
    if any(device.type == "meta" for device in devices_of(lm.model)):
        raise ConfigError(f"{lm.card.name} has no weights; load a model that has some")
    refuse_inference_tensors(lm.model)


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
        if saved := getattr(config, "modules_to_save", None):
            find_modules(lm.model, saved)
    family = family_of(task, lm)
    if family.writes:  # texts under a head are cut to what there is room for
        _check_positions(lm, task, configs, training)
    if training.loraplus_lr_ratio is not None and not any(method_of(c).ranks for c in configs):
        raise ConfigError(
            f"loraplus_lr_ratio is LoRA+'s rate of B, and {method_name(configs)} has no B; leave "
            "it out"
        )
    if training.label_smoothing_factor and not family.smooths:
        raise ConfigError(
            f"label_smoothing_factor smooths a cross-entropy over tokens or classes, and the loss "
            f"of {task.name} ({task.loss_unit}) is none; leave it out"
        )
    if training.head_learning_rate is not None and not task.head:
        raise ConfigError(
            f"head_learning_rate is the rate of a classifier's head, and {task.name} needs none; "
            "leave it out"
        )
    _check_evaluations(task, training)
    check_trackers(training.report_to)
    check_packed(lm.model)
    check_together(lm.model)


def _check_evaluations(task: Task, training: TrainingConfig) -> None:
    """Refuse evaluations of nothing, and a best one by what is not measured."""
    if training.evaluates == "no":
        return
    held_out = task.validation[: training.eval_examples]
    if not held_out:
        none = "eval_examples is 0" if len(task.validation) else f"{task.name} has none"
        raise ConfigError(
            f"eval_strategy={training.evaluates!r} scores held-out examples, and {none}; leave it "
            "out, or give the run some"
        )
    every = training.evaluated_every or 0
    goes_by = training.load_best_model_at_end or training.early_stopping_patience
    if goes_by and every > training.max_steps:
        raise ConfigError(
            f"eval_steps={every} is more than max_steps={training.max_steps}, so that no "
            "evaluation would tell which adapter is best; use a smaller one"
        )
    known = {"loss": None} | {metric.name: metric for metric in task.metrics}
    name = training.best_metric
    if name not in known:
        raise ConfigError(
            f"metric_for_best_model is {name!r}, which {task.name} does not have; use one of "
            f"{', '.join(known)}"
        )
    best_by = known[name]
    right = [task.reference(example) for example in held_out]
    if best_by is not None and (why := best_by.no_use(right)):
        raise ConfigError(
            f"metric_for_best_model is {name!r}, which says nothing of {task.name} ({why}); use "
            "another one, such as loss"
        )


def _check_positions(
    lm: LoadedModel, task: Task, configs: Sequence[MethodConfig], training: TrainingConfig
) -> None:
    tokens = sum(config.tokens for config in configs)
    model = unwrapped(lm.model)
    if not tokens:
        most = position_limit(model)
        cuts = family_of(task, lm).room(lm) < NO_LIMIT  # to what there is room for
        if most is not None and most < training.max_length and not cuts:
            raise ConfigError(
                f"max_length={training.max_length} is more than the {most} positions of "
                f"{lm.card.name}; use a max_length of at most {most}"
            )
        return
    most = max_positions(model)
    # Where the tokens alone are too many, `attach` says so.
    if most is not None and tokens < most < tokens + training.max_length:
        raise ConfigError(
            f"{tokens} learned tokens and max_length={training.max_length} do not fit the model's "
            f"{most} positions; use a max_length of at most {most - tokens}, or fewer learned "
            "tokens"
        )


def check_rows(
    lm: LoadedModel, task: Task, configs: Sequence[MethodConfig], training: TrainingConfig
) -> None:
    """Refuse examples that the model cannot read: tokens without a row, or none that fits.

    Of those to train on a few are looked at, and all only where these or the tokenizer give reason
    to. The run encodes them itself when it begins: it may wait in the queue till then.

    Raises:
        ModelError: a token that the model does not embed, or cannot write.
        TaskError: an example that cannot be encoded; none fits `max_length`, or with
            too_long="error" not all do.
    """
    tokens = sum(config.tokens for config in configs)
    family = run_family(lm, task, training, tokens)
    read, written = embedded_rows(lm.model), scored_rows(lm.model)
    fewest = min((rows for rows in (read, written) if rows is not None), default=None)
    doubtful = fewest is not None and bool(tokens_beyond(family.tokenizer, fewest))
    tally = Tally()
    for part in (task.train, task.validation[: training.eval_examples]):
        looked_at = part[:_FEW] if part is task.train and not doubtful else part
        for found in fit_examples(family, looked_at, training.too_long):
            if read is not None and found.encoded:
                _check_tokens(family, found.encoded, read, written)
            tally += found.tally
    if training.too_long == "error" or tally.left_out == tally.count:
        RunData(lm, task, training, [], tokens).training_examples()


def _check_tokens(
    family: Family, encoded: Sequence[Mapping[str, Any]], read: int, written: int | None
) -> None:
    """Refuse tokens that the model does not embed, padding included, or that it cannot write."""
    model, tokenizer = family.model, family.tokenizer
    for item in encoded:
        labels = item["labels"] if family.writes else []
        if max(item["input_ids"]) >= read:
            raise ModelError(vocabulary_line(tokenizer, read))
        if written is not None and max(labels, default=0) >= written:
            raise ModelError(vocabulary_line(tokenizer, written))
    by_length = sorted(encoded, key=lambda item: len(item["input_ids"]))
    batch = family.collate([by_length[0], by_length[-1]])  # padded as in training
    for name in ("input_ids", "decoder_input_ids"):
        for padding in batch.get(name, torch.zeros(1)).flatten().tolist():
            if padding >= read and padding == tokenizer.pad_token_id:
                raise ModelError(
                    f"{vocabulary_line(tokenizer, read)}, or set tokenizer.pad_token = "
                    "tokenizer.eos_token"
                )
            if not 0 <= padding < read:
                raise ModelError(
                    f"batches are padded with token {padding}, and the model embeds tokens 0 to "
                    f"{read - 1}; set model.config.pad_token_id (now {model.config.pad_token_id}) "
                    f"to the tokenizer's ({tokenizer.pad_token_id})"
                )
