"""How a run trains."""

from __future__ import annotations

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
_BATCH = "per_device_train_batch_size"
Schedule = Literal["linear", "constant", "cosine"]
Order = Literal["group_by_length", "random"]
# What runs did whose config.json does not tell: there was no choice.
UNTOLD: Mapping[str, Any] = MappingProxyType({"train_sampling_strategy": "random"})
_ADDED = (*("warmup_ratio", "adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor"),)
TRACKERS = ("trackio", "wandb", "tensorboard", "mlflow")  # transformers' names


@dataclass(frozen=True)
class TrainingConfig(Config):
    """How long and how to train. Names are those of transformers' TrainingArguments.

    Attributes:
        max_steps: optimizer steps.
        per_device_train_batch_size: examples a forward pass.
        gradient_accumulation_steps: forward passes an optimizer step.
        learning_rate: peak rate of AdamW.
        loraplus_lr_ratio: LoRA+ (Hayou et al., 2024): B learns at this many times `learning_rate`,
            and so does DoRA's magnitude, as in PEFT; the authors use 16, with a smaller
            `learning_rate`. Embeddings, which their analysis leaves out, keep `learning_rate`.
            None: one rate for all.
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
        save_steps: a checkpoint every so many steps, and one when a minute has passed without
            one; `lora_lab.resume` goes on from the newest. 0: none but those that are asked for.
        gradient_checkpointing: recompute each block in the backward pass.
        recompute_mlp: keep two of a gated MLP's four wide tensors, and make the others again in
            the backward pass; see `lora_lab.training.recompute_mlp`. Forecasts do not know of it.
        seed: of the adapter's init, the data order and dropout.
        train_sampling_strategy: "group_by_length": a step's examples are of like length, so that
            little padding is computed; see `lora_lab.training.sampler`. "random": of any. Every
            example is seen once a round either way.
        report_to: "trackio", "wandb", "tensorboard" or "mlflow", or several of them: each step's
            loss and rate go there as well, by transformers' own callbacks. None: nowhere.
    """

    max_steps: int = 100
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
    recompute_mlp: bool = False
    seed: int = 0
    report_to: str | Sequence[str] | None = None
    too_long: Literal["cut", "drop", "error"] = "cut"
    train_sampling_strategy: Order = "group_by_length"
    warmup_ratio: float | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    label_smoothing_factor: float = 0.0

    added = frozenset({"too_long", *_ADDED})

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

    @property
    def step_size(self) -> int:
        """Examples that a process takes an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def __post_init__(self) -> None:
        for name in ("max_steps", "gradient_accumulation_steps"):
            need_count(name, getattr(self, name), least=1, most=MOST)
        need_count(_BATCH, self.per_device_train_batch_size, least=1, most=2**20)
        for name in ("eval_examples", "save_steps", "seed"):
            need_count(name, getattr(self, name), least=0)
        need_number("weight_decay", self.weight_decay)
        need_number("max_grad_norm", self.max_grad_norm, least=-sys.float_info.max)
        for name in ("gradient_checkpointing", "recompute_mlp"):
            need_flag(name, getattr(self, name))
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
        for name, kind in (("lr_scheduler_type", Schedule), ("train_sampling_strategy", Order)):
            if (value := getattr(self, name)) not in get_args(kind):
                known = ", ".join(map(repr, get_args(kind)))
                raise ConfigError(f"{name} is {shown(value)}; use one of {known}")
        need_positive("learning_rate", self.learning_rate)
        if self.report_to is not None:
            names = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)
            if unknown := [name for name in names if name not in TRACKERS]:
                raise ConfigError(
                    f"report_to names {unknown[0]!r}; use one or more of {', '.join(TRACKERS)}"
                )
            object.__setattr__(self, "report_to", tuple(names) or None)
        if self.loraplus_lr_ratio is not None:
            need_positive("loraplus_lr_ratio", self.loraplus_lr_ratio)

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
