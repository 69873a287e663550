"""Steps of tiny models on a small batch, and their dry run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import LoraConfig
from lora_lab.methods.api import attach

BATCH, LENGTH = 4, 48
small_dry_run = partial(dry_run, batch_size=BATCH, sequence_length=LENGTH)


def adapted(model: nn.Module, config: LoraConfig | None, *, checkpointing: bool = False) -> Any:
    model.train()
    if config:
        attach(model, config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def batch_of(model: Any, padded: bool = False) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 96, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -3:] = 0
    classifies = type(model).__name__.endswith("SequenceClassification")
    labels = torch.zeros(BATCH, dtype=torch.int64) if classifies else ids.clone()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids.clone()
        model.decoder.config.use_cache = False  # it has a config of its own
    return batch
