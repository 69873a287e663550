"""What steps of the real training loop take on a device, for a comparison with the dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from lora_lab.budget.meter import Meter
from lora_lab.budget.reading import MemoryReading
from lora_lab.configs import TrainingConfig
from lora_lab.methods import attach
from lora_lab.training.trainer import Fit


def model_in(recipe: Any, dtype: torch.dtype, device: str) -> Any:
    """Return a config's model with random weights of a dtype; buffers stay as they are."""
    with torch.device(device):
        model = getattr(transformers, recipe.architectures[0])(recipe)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def loop_reading(
    model: Any, config: Any, folder: Path, *, batch: int, length: int, **training: Any
) -> MemoryReading:
    """Return the meter's reading of three steps, on the model's own device."""
    adapter = attach(model, config)
    meter = Meter(model)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (batch, length), generator=drawn)
    Fit(
        model=model,
        adapter=adapter,
        examples=ids.tolist(),
        collate=collate,
        training=TrainingConfig(
            max_steps=3, per_device_train_batch_size=batch, learning_rate=1e-4, **training
        ),
        folder=folder,
        meter=meter,
        on_step=lambda _: False,
    ).run()
    return meter.reading()
