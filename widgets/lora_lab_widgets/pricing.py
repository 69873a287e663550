"""What a plan's settings make of the table of prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_lab.budget.table import price_table, tokens_text
from lora_lab.methods.lora.config import LoraConfig
from lora_lab.methods.registry import offered
from lora_lab.runs.training_config import TrainingConfig
from lora_lab_widgets.methods import typed
from lora_lab_widgets.planned import Price

if TYPE_CHECKING:
    from lora_lab.anatomy.types import Anatomy
    from lora_lab.models.load import LoadedModel
    from lora_lab.tasks.families.base import Lengths

_OF_LORA = "lora_dropout", "use_dora", "init_lora_weights"
_OF_STEPS = "per_device_train_batch_size", "max_length", "gradient_checkpointing"
REPRICED = ("task", *_OF_STEPS, *_OF_LORA)
"""The settings that change what every plan costs."""


def step_of(settings: Mapping[str, Any]) -> TrainingConfig:
    """Return what settings say of the size of a step.

    Raises:
        ConfigError: one that cannot be.
    """
    return TrainingConfig(**{name: settings[name] for name in _OF_STEPS})


def price_of(
    lm: LoadedModel,
    anatomy: Anatomy,
    settings: Mapping[str, Any],
    longest: tuple[Lengths, int | None],
    lora: LoraConfig,
    more: Mapping[str, Any],
) -> Price:
    """Return the price of every plan under settings.

    Args:
        lm, anatomy: the model.
        settings: as typed.
        longest: the longest example that a step may have, and how many tokens have a label.
        lora: with what no setting shows of it.
        more: other arguments of `price_table`.

    Raises:
        ConfigError: a setting that cannot be.
    """
    step, (lengths, labels) = step_of(settings), longest
    batch = step.per_device_train_batch_size
    inputs: dict[str, Any] = {
        "batch_size": batch,
        "sequence_length": lengths.read,
        "target_length": lengths.written,
        "label_length": labels,
        "dtype": lm.card.dtype,
        "padding_mask": batch > 1,  # examples of one batch differ in length
        "device": lm.model.device,
        **more,
    }
    text = f"against full fine-tuning, batch {batch} × {tokens_text(*lengths)}, AdamW"
    if step.gradient_checkpointing:
        inputs["gradient_checkpointing"] = True
        text += ", recomputed"
    own = [field for field in offered()["LoRA"].fields if field.name in _OF_LORA]
    lora = lora.replace(**typed(settings, own))
    return Price(inputs, price_table(anatomy, lora=lora, **inputs), text)


def priced_by_ranks(config: LoraConfig) -> bool:
    """Whether the table has all of a LoRA: its factors, and nothing that is trained beside them."""
    beside = config.modules_to_save or config.trainable_token_indices or config.lora_bias
    return config.bias == "none" and not beside
