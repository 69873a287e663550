"""How a run trains."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from lora_lab._util.format import shown
from lora_lab.errors import ConfigError
from lora_lab.methods.config import (
    MOST,
    Config,
    need_count,
    need_flag,
    need_number,
    need_positive,
    need_share,
)

_OF_DATA = {"prompt", "completion", "template", "text", "label", "target", "pair", "validation"}
_STEPS = 100
_BATCH = "per_device_train_batch_size"
_MOST_TEXTS = 1000  # they are written side by side
Schedule = Literal["linear", "constant", "cosine"]
EvalStrategy = Literal["no", "steps", "epoch"]
Order = Literal["group_by_length", "random"]
Draws = Literal["per_site", "one_stream"]
# What runs did whose config.json does not tell: there was no choice.
UNTOLD: Mapping[str, Any] = MappingProxyType(
    {"train_sampling_strategy": "random", "init_draws": "one_stream"}
)
_ADDED = (
    *("warmup_ratio", "adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor"),
    *("num_train_epochs", "eval_strategy", "eval_steps", "metric_for_best_model"),
    *("head_learning_rate", "greater_is_better", "load_best_model_at_end"),
    *("early_stopping_patience", "early_stopping_threshold"),
    *("kept_texts", "kept_data"),
)
TRACKERS = ("trackio", "wandb", "tensorboard", "mlflow")  # transformers' names


@dataclass(frozen=True)
class TrainingConfig(Config):
    """How long and how to train. Names are those of transformers' TrainingArguments.

    Attributes:
        max_steps: optimizer steps. -1: as many as `num_train_epochs` take, and 100 without them;
            above 0 it overrides them.
        num_train_epochs: how often the training examples are gone through, parts of one too. As in
            HF Trainer each time ends with a step of what is left. None: steps are full, and the
            last one of a round is filled up from the next.
        per_device_train_batch_size: examples a forward pass.
        gradient_accumulation_steps: forward passes an optimizer step.
        learning_rate: peak rate of AdamW.
        loraplus_lr_ratio: LoRA+ (Hayou et al., 2024): B learns at this many times `learning_rate`,
            and so does DoRA's magnitude, as in PEFT; the authors use 16, with a smaller
            `learning_rate`. Embeddings, which their analysis leaves out, keep `learning_rate`.
            None: one rate for all.
        head_learning_rate: of a classifier's head, which begins at random; None: `learning_rate`.
        warmup_steps: linear warm-up from 0, then `lr_scheduler_type` down to the last step. A
            number below 1 is a share of `max_steps`, as in transformers 5.
        warmup_ratio: transformers 4's name for such a share: it becomes `warmup_steps`.
        weight_decay: AdamW's, of all that is trained.
        adam_beta1, adam_beta2, adam_epsilon: AdamW's.
        label_smoothing_factor: ε: the loss that is trained with, and shown by step, is
            1 − ε times the label's and ε times the mean over all tokens (or classes). Held-out
            losses are of labels alone, so that they compare.
        max_grad_norm: gradients are scaled down to this norm over the whole adapter.
        max_length: tokens an example, prompt and completion together (of an encoder-decoder
            model, each of the two).
        too_long: what becomes of longer examples; how many they are, and the length that would
            do, is said once. "cut": the start of the prompt is cut, or the end of a text with a
            class; an example whose completion alone is longer is left out. "drop": all of them
            are left out. "error": nothing is trained.
        eval_examples: held-out prompts answered and scored before and after training; 0: none.
        kept_texts: texts of 32 tokens that the base model writes before the first step. Its loss on
            them, before, in every evaluation and after, says what training has kept ("kept_loss");
            see `lora_lab.training.kept`. Where the held-out examples are scored; 0: none.
        kept_data: the name of data, as `load_task` takes it, on which the loss is measured likewise
            ("kept_data_loss"): an earlier task's, or a file of your own. Its first 32 examples
            count.
        save_steps: a checkpoint every so many steps, and one when a minute has passed without
            one; `lora_lab.resume` goes on from the newest. 0: none but those that are asked for.
        gradient_checkpointing: recompute each block in the backward pass.
        recompute_mlp: keep two of a gated MLP's four wide tensors, and make the others again in
            the backward pass, by entrywise operations and to the same bits; see
            `lora_lab.methods.recompute_mlp`. None: where the model has MLPs of that form.
        eval_strategy: when the held-out examples are scored while the run trains: "steps", every
            `eval_steps`; "epoch", whenever the training examples have been gone through; "no".
            None: "steps" where there are `eval_steps`. Of answers that are written token by token
            the loss alone is measured, unless `metric_for_best_model` is about them.
        eval_steps: so many steps, or a share of `max_steps` below 1.
        metric_for_best_model: by which evaluation is best: "loss" (None), or one of the task's
            metrics, such as "accuracy" or "eval_accuracy".
        greater_is_better: which way; None: as the metric says.
        load_best_model_at_end: the adapter that is scored and saved at the end is that of the best
            evaluation, not of the last step.
        early_stopping_patience: the run ends after so many evaluations in a row that are no better
            than the best by more than `early_stopping_threshold`, as transformers'
            EarlyStoppingCallback has it. None: it takes all of its steps.
        seed: of the adapter's init, of a head that `load_model` began at random, the data order
            and dropout.
        train_sampling_strategy: "group_by_length": a step's examples are of like length, so that
            little padding is computed; see `lora_lab.training.sampler`. "random": of any. Every
            example is seen once a round either way.
        init_draws: "per_site": the adapter starts at numbers that follow from the seed, the site
            and the rank there. "one_stream": from the seed alone, site after site, as runs of
            earlier versions did: r = 64 starts with the rows of r = 8.
        report_to: "trackio", "wandb", "tensorboard" or "mlflow", or several of them: each step's
            loss and rate go there as well, by transformers' own callbacks. None: nowhere.
    """

    max_steps: int = -1
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-3
    loraplus_lr_ratio: float | None = None
    warmup_steps: int | float = 0.05
    lr_scheduler_type: Schedule = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 128
    eval_examples: int = 16
    save_steps: int = 50
    gradient_checkpointing: bool = False
    recompute_mlp: bool | None = None
    seed: int = 0
    report_to: str | Sequence[str] | None = None
    too_long: Literal["cut", "drop", "error"] = "cut"
    train_sampling_strategy: Order = "group_by_length"
    init_draws: Draws = "per_site"
    warmup_ratio: float | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    label_smoothing_factor: float = 0.0
    num_train_epochs: float | None = None
    head_learning_rate: float | None = None
    eval_strategy: EvalStrategy | None = None
    eval_steps: int | float | None = None
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    load_best_model_at_end: bool = False
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    kept_texts: int = 16
    kept_data: str | None = None

    added = frozenset({"too_long", *_ADDED})
    filled = MappingProxyType({"max_steps": _STEPS})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping; see `Config.from_dict`."""
        if columns := _OF_DATA.intersection(values):
            name = min(columns)
            raise ConfigError(
                f"{name} says how data is read: load_task(…, {name}={values[name]!r}) takes it, "
                "and what that returns is trained on"
            )
        return super().from_dict(values)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; epochs take the place of steps."""
        if changes.get("num_train_epochs") is not None:
            changes = {"max_steps": -1, **changes}
        return super().replace(**changes)

    @property
    def step_size(self) -> int:
        """Examples that a process takes an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def __post_init__(self) -> None:
        self._check_steps()
        need_count(_BATCH, self.per_device_train_batch_size, least=1, most=2**20)
        for name in ("eval_examples", "save_steps", "seed"):
            need_count(name, getattr(self, name), least=0)
        need_count("kept_texts", self.kept_texts, least=0, most=_MOST_TEXTS)
        if not isinstance(self.kept_data, str | None) or self.kept_data == "":
            raise ConfigError(
                f"kept_data is {shown(self.kept_data)}; it is the name of a file or of a data set"
            )
        need_number("weight_decay", self.weight_decay)
        need_number("max_grad_norm", self.max_grad_norm, least=-sys.float_info.max)
        need_flag("gradient_checkpointing", self.gradient_checkpointing)
        if self.recompute_mlp is not None:
            need_flag("recompute_mlp", self.recompute_mlp)
        self._take_warmup_ratio()
        _check_warmup(self.warmup_steps)
        for name in ("adam_beta1", "adam_beta2", "label_smoothing_factor"):
            need_share(name, getattr(self, name))
        need_positive("adam_epsilon", self.adam_epsilon)
        need_count("max_length", self.max_length, least=0)
        if self.max_length < 8:
            raise ConfigError(f"max_length is {self.max_length}; it must be at least 8 tokens")
        if self.too_long not in ("cut", "drop", "error"):
            raise ConfigError(f"too_long is {shown(self.too_long)}; use 'cut', 'drop' or 'error'")
        for name, kind in (
            ("lr_scheduler_type", Schedule),
            ("train_sampling_strategy", Order),
            ("init_draws", Draws),
        ):
            if (value := getattr(self, name)) not in get_args(kind):
                known = ", ".join(map(repr, get_args(kind)))
                raise ConfigError(f"{name} is {shown(value)}; use one of {known}")
        need_positive("learning_rate", self.learning_rate)
        if self.head_learning_rate is not None:
            need_positive("head_learning_rate", self.head_learning_rate)
        self._check_evaluations()
        if self.report_to is not None:
            names = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
            if unknown := [name for name in names if name not in TRACKERS]:
                raise ConfigError(
                    f"report_to names {unknown[0]!r}; use one or more of {', '.join(TRACKERS)}"
                )
            object.__setattr__(self, "report_to", tuple(names) or None)
        if self.loraplus_lr_ratio is not None:
            need_positive("loraplus_lr_ratio", self.loraplus_lr_ratio)

    def _check_steps(self) -> None:
        epochs = self.num_train_epochs
        if epochs is not None:
            need_positive("num_train_epochs", epochs)
        if self.max_steps != -1 or isinstance(self.max_steps, float):
            need_count("max_steps", self.max_steps, least=1, most=MOST)
        elif epochs is None:
            object.__setattr__(self, "max_steps", _STEPS)
        need_count(
            "gradient_accumulation_steps", self.gradient_accumulation_steps, least=1, most=MOST
        )

    def for_examples(self, count: int, processes: int = 1) -> Self:
        """Return it with the steps that its epochs take of so many examples.

        Raises:
            ConfigError: they are too many.
        """
        if self.max_steps > 0 or self.num_train_epochs is None:
            return self
        steps = self.num_train_epochs * self.steps_per_epoch(count, processes)
        return dataclasses.replace(self, max_steps=math.ceil(min(steps, sys.float_info.max)))

    def steps_per_epoch(self, count: int, processes: int = 1) -> int:
        """Return the steps in which so many examples are gone through, as HF Trainer counts."""
        return max(1, math.ceil(count / (self.step_size * processes)))

    def _check_evaluations(self) -> None:
        every, patience = self.eval_steps, self.early_stopping_patience
        if every is not None:
            if isinstance(every, float) and every >= 1 and every.is_integer():
                object.__setattr__(self, "eval_steps", int(every))  # as in transformers
            elif not (isinstance(every, float) and 0 < every < 1):
                need_count("eval_steps", every, least=1, most=MOST)
        if self.eval_strategy not in (None, *get_args(EvalStrategy)):
            raise ConfigError(
                f"eval_strategy is {shown(self.eval_strategy)}; use 'no', 'steps' or 'epoch'"
            )
        if self.evaluates == "steps" and every is None:
            raise ConfigError("eval_strategy='steps' needs eval_steps, such as eval_steps=50")
        need_flag("load_best_model_at_end", self.load_best_model_at_end)
        if self.greater_is_better is not None:
            need_flag("greater_is_better", self.greater_is_better)
        if not isinstance(self.metric_for_best_model, str | None):
            raise ConfigError(
                f"metric_for_best_model is {shown(self.metric_for_best_model)}; it is a name, such "
                "as 'loss'"
            )
        if patience is not None:
            need_count("early_stopping_patience", patience, least=1, most=MOST)
        need_number("early_stopping_threshold", self.early_stopping_threshold)
        for name in ("load_best_model_at_end", "early_stopping_patience"):
            if getattr(self, name) and self.evaluates == "no":
                raise ConfigError(
                    f"{name} goes by evaluations while the run trains; set eval_steps, or "
                    "eval_strategy='epoch'"
                )

    @property
    def evaluates(self) -> EvalStrategy:
        """When held-out examples are scored while it trains."""
        return self.eval_strategy or ("no" if self.eval_steps is None else "steps")

    @property
    def evaluated_every(self) -> int | None:
        """The steps between two evaluations; None: they do not go by steps."""
        every = self.eval_steps
        if self.evaluates != "steps" or every is None:
            return None
        return every if isinstance(every, int) else math.ceil(self.max_steps * every)

    @property
    def best_metric(self) -> str:
        """By which evaluation is best, as the task's metrics are called."""
        return (self.metric_for_best_model or "loss").removeprefix("eval_")

    def _take_warmup_ratio(self) -> None:
        ratio, steps = self.warmup_ratio, self.warmup_steps
        if ratio is None:
            return
        need_share("warmup_ratio", ratio)
        if steps not in (type(self).warmup_steps, float(ratio)):
            raise ConfigError(
                f"warmup_ratio is {shown(ratio)} and warmup_steps {shown(steps)}; give one of them"
            )
        object.__setattr__(self, "warmup_steps", float(ratio))
        object.__setattr__(self, "warmup_ratio", None)

    @property
    def warmup(self) -> int:
        """The steps of the warm-up."""
        return warmup(self.max_steps, self.warmup_steps)


def warmup(max_steps: int, warmup_steps: int | float) -> int:
    """Return the steps of a warm-up; of a share as many as transformers takes, rounded up.

    But a share leaves at least the last step: a run of one step learns.
    """
    if not isinstance(warmup_steps, float):
        return warmup_steps
    return min(math.ceil(max_steps * warmup_steps), max_steps - 1)


def _check_warmup(value: object) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and not (isinstance(value, float) and 0 <= value < 1):
        raise ConfigError(
            f"warmup_steps is {shown(value)}; it must be a whole number of at least 0, or a share "
            "of max_steps in [0, 1)"
        )
    if whole:
        need_count("warmup_steps", value, least=0)
