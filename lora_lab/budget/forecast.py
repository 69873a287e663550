"""`budget`: what a plan will cost, from the table of prices and each method's cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.anatomy.api import anatomy
from lora_lab.anatomy.types import Anatomy
from lora_lab.budget.costs import Budget, Memory
from lora_lab.budget.evaluate import assemble
from lora_lab.budget.gpu import own_device
from lora_lab.budget.table import fitting_tokens, price_table
from lora_lab.errors import ConfigError
from lora_lab.methods.combined import as_config
from lora_lab.methods.config import MethodConfig
from lora_lab.methods.cost import MethodCost
from lora_lab.methods.head.beside import with_heads
from lora_lab.methods.registry import method_of
from lora_lab.models.load import catalogue, model_config

if TYPE_CHECKING:
    import torch


def budget(
    model: Any,
    config: MethodConfig | Sequence[MethodConfig],
    *,
    batch_size: int = 8,
    sequence_length: int = 128,
    dtype: torch.dtype | str | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    padding_mask: bool = False,
    target_length: int | None = None,
    device: torch.device | str | None = None,
    recompute_mlp: bool | None = None,
    label_length: int | None = None,
) -> Budget:
    """Forecast what training with this method will cost, against full fine-tuning.

    Args:
        model: a model, its `Anatomy`, a catalogue name, a hub id, or a folder with a config.json.
        config: a method's config, or several that are trained together (LoRA+PE).
        batch_size: sequences a step.
        sequence_length: tokens a sequence, all of them used; learned ones come on top.
        dtype: of the base model; None takes the model's own. Adapters are always float32.
        optimizer: one of `OPTIMIZERS`.
        gradient_checkpointing: whether blocks are recomputed in the backward pass.
        padding_mask: whether some sequences are shorter, so that attention needs a mask.
        target_length: tokens that an encoder-decoder model writes; None: as many as it reads.
        device: whose kernels compute attention: torch's name, or one of `GPUS`, such as "T4". None:
            the model's own; of a name the GPU that is here, if any.
        recompute_mlp: whether gated MLPs keep less; see `TrainingConfig`.
        label_length: tokens of a sequence that have a label, at most; None: all of them.

    Raises:
        ConfigError: a setting that cannot be, a target without a match, a weight trained twice.
        ModelError: for a model that cannot be read.
    """
    config = as_config(config)
    everything = any(method_of(part).trains_everything for part in config.parts)
    if everything and len(config.parts) > 1:
        raise ConfigError("full fine-tuning (FT) trains every weight; leave the other methods out")
    anatomy = _anatomy_of(model)
    price = price_table(
        anatomy,
        batch_size=batch_size,
        sequence_length=sequence_length,
        dtype=dtype,
        optimizer=optimizer,
        gradient_checkpointing=gradient_checkpointing,
        padding_mask=padding_mask,
        target_length=target_length,
        device=own_device(model) if device is None else device,
        recompute_mlp=recompute_mlp,
        label_length=label_length,
        learned_tokens=fitting_tokens(anatomy, config, sequence_length),
    )
    if everything:
        found = _full_budget(price)
    else:
        found = assemble(price, _costs(anatomy, config, price), config.method)
    return _within_positions(_beside_its_head(found, anatomy, config), anatomy, sequence_length)


def _beside_its_head(found: Budget, anatomy: Anatomy, config: MethodConfig) -> Budget:
    """Say of a classifier's plan that leaves its head out what a run of it trains besides."""
    named = any(getattr(part, "task_type", None) for part in config.parts)
    if named or with_heads(anatomy.heads, config.parts) == config.parts:
        return found
    line = f"a run on a task trains the head ({', '.join(anatomy.heads)}) too, not counted here"
    return replace(found, notes=(*found.notes, line))


def _within_positions(found: Budget, anatomy: Anatomy, sequence_length: int) -> Budget:
    limit = anatomy.shape.position_limit
    if limit is None or sequence_length <= limit:
        return found
    line = f"it cannot be trained so: {sequence_length} tokens are more than its {limit} positions"
    return replace(found, notes=(*found.notes, line))


def _costs(anatomy: Anatomy, config: MethodConfig, price: dict[str, Any]) -> list[MethodCost]:
    """Return each part's cost.

    Raises:
        ConfigError: the model cannot use one of them, or two train the same weight.
    """
    found: list[tuple[str, MethodCost]] = []
    for part in config.parts:
        cost = method_of(part).price(anatomy, part, price)
        for method, other in found:
            if both := cost.conflicts & other.conflicts:
                raise ConfigError(
                    f"{method} and {part.method} both claim {min(both)}; leave one of them out, or "
                    "give them different targets"
                )
        found.append((part.method, cost))
    return [cost for _, cost in found]


def _full_budget(price: dict[str, Any]) -> Budget:
    """Return full fine-tuning as a plan of its own."""
    return replace(
        assemble(price, [], "FT"),
        parameters_trainable=price["parameters"],
        checkpoint_bytes=price["weights"],
        adapted=Memory(**price["full"]),
    )


def _anatomy_of(model: Any) -> Anatomy:
    if isinstance(model, Anatomy):
        return model
    if isinstance(model, (str, Path)):
        return _anatomy_by_name(str(model))
    return anatomy(model)


def _anatomy_by_name(name: str) -> Anatomy:
    if name in catalogue():
        return _catalogue_anatomy(name)
    return anatomy(model_config(name))


@lru_cache
def _catalogue_anatomy(name: str) -> Anatomy:
    return anatomy(model_config(name))
