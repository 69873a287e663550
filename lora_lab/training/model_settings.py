"""How a model is set up while it trains; every setting is put back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from lora_lab._util.put_back import put_back_by
from lora_lab._util.transformers_private import input_needs_grad
from lora_lab.methods.recompute_mlp import recomputed_mlps
from lora_lab.runs.training_config import TrainingConfig


@contextlib.contextmanager
def training_settings(model: Any, training: TrainingConfig) -> Iterator[None]:
    """Set the model up for training, and put every setting back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    caches = _caches(model)
    checkpointing = training.gradient_checkpointing and not is_checkpointing(model)

    def restore_caches() -> None:
        for config, use_cache in caches:
            config.use_cache = use_cache

    try:
        with put_back_by(restore_caches):
            for config, _ in caches:
                config.use_cache = False
            with (
                _checkpointed(model) if checkpointing else contextlib.nullcontext(),
                recomputed_mlps(model, training.recompute_mlp),
            ):
                yield
    finally:
        for module, mode in modes:
            module.training = mode


def _caches(model: nn.Module) -> list[tuple[Any, Any]]:
    """Return (config, its `use_cache`) of all configs that have one; T5's stacks have their own."""
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    distinct = {id(c): c for c in configs if hasattr(c, "use_cache")}
    return [(config, config.use_cache) for config in distinct.values()]


@contextlib.contextmanager
def _checkpointed(model: Any) -> Iterator[None]:
    """Switch gradient checkpointing on; the frozen embeddings' output then needs a gradient."""
    needed_before = input_needs_grad(model)
    if needed_before:
        model.disable_input_require_grads()  # switched on twice, the first hooks would be lost
    # transformers 5.2x calls it `activation_…`, and switches the input's gradients on by itself.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if not input_needs_grad(model):
        model.enable_input_require_grads()

    def disable() -> None:
        own = getattr(model, "activation_checkpointing_disable", None)
        (own or model.gradient_checkpointing_disable)()
        if not needed_before:
            model.disable_input_require_grads()

    with put_back_by(disable):
        yield


def is_checkpointing(model: nn.Module) -> bool:
    """Whether some block of a model is recomputed in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
