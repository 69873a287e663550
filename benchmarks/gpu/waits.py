"""How often a training step waits for the device: torch's own debug mode tells of each time."""

from __future__ import annotations

import collections
import warnings
from pathlib import Path
from typing import Any

import torch

import lora_lab as ll
from benchmarks._measure import Row
from benchmarks.gpu.learning import ALL, tiny_lm
from benchmarks.gpu.lines import Place
from lora_lab._util.own_random import seeded
from lora_lab.budget.meter import Meter
from lora_lab.configs import TrainingConfig
from lora_lab.methods import attach
from lora_lab.tasks.encoding import collate, encode_all
from lora_lab.training.step import Step
from lora_lab.training.trainer import Fit
from tests.helpers.tiny_run import tiny_task

FIRST, LAST = 5, 10
CONFIGS: dict[str, Any] = {
    "LoRA": ll.LoraConfig(**ALL),
    "LoRA, dropout": ll.LoraConfig(**ALL, lora_dropout=0.1),
    "DoRA": ll.LoraConfig(**ALL, use_dora=True),
    "AdaLoRA": ll.AdaLoraConfig(init_r=4, target_r=2, target_modules="all-linear", tinit=20),
    "FT": ll.FullConfig(),
    "PreLayer": ll.PrefixLayerConfig(prefix_length=2),
}


def waits(place: Place) -> list[Row]:
    """Count the waits of the loop's own steps, by method; the note names where they are."""
    configs = {"LoRA": CONFIGS["LoRA"]} if place.small else CONFIGS
    return [_waits(place, name, config) for name, config in configs.items()]


def _waits(place: Place, name: str, config: Any) -> Row:
    lm, task = tiny_lm(place.device), tiny_task()
    with seeded(0):
        adapter = attach(lm.model, config)
    examples, _ = encode_all(task.train, task, lm.tokenizer, 64)

    def on_step(step: Step) -> bool:
        if place.device == "cuda":
            mode = "warn" if FIRST - 1 <= step.number < LAST else "default"
            torch.cuda.set_sync_debug_mode(mode)
        return step.number == LAST

    fit = Fit(
        model=lm.model,
        adapter=adapter,
        examples=examples,
        collate=lambda rows: collate(rows, 0),
        training=TrainingConfig(max_steps=40, gradient_accumulation_steps=2),
        folder=place.folder,
        meter=Meter(lm.model),
        on_step=on_step,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            fit.run()
        finally:
            if place.device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    where = collections.Counter(
        f"{Path(each.filename).name}:{each.lineno}"
        for each in said
        if "called a synchronizing CUDA operation" in str(each.message)
    )
    # transformers' masks ask the device in every pass whether a padding mask is of ones alone.
    own = sum(times for at, times in where.items() if not at.startswith("masking_utils.py"))
    count = own / (LAST - FIRST + 1)
    return Row(
        f"waits for the device in steps {FIRST} to {LAST}, {name}, 2 passes a step",
        f"{count:.1f} a step",
        "≤ 1 a step, beside transformers' own",
        None if place.device == "cpu" else count <= 1,
        ", ".join(f"{at} {times}×" for at, times in where.most_common(6)),
    )
