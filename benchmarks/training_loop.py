"""A step of the training loop against HF Trainer's: the same model, adapter and data."""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks._measure import Row, median_ratio, print_table
from lora_lab._util.own_random import seeded
from lora_lab.budget.meter import Meter
from lora_lab.configs import LoraConfig, TrainingConfig
from lora_lab.methods import attach
from lora_lab.training.trainer import Fit

SKIPPED = 4  # the first steps: the meter counts in two of them, kernels warm up
REACH = 1.02  # not slower, within the noise of a pair
# name: layers, width, tokens an example
SIZES = {"2 layers, 64 wide": (2, 64, 16), "4 layers, 128 wide": (4, 128, 32)}


def model_of(layers: int, width: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def collate(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def adapted(make: Callable[[], Any], dropout: float) -> tuple[Any, Any]:
    model = make()
    with seeded(0):
        return model, attach(model, LoraConfig(target_modules="all-linear", lora_dropout=dropout))


def ours(
    make: Callable[[], Any], rows: list[list[int]], training: TrainingConfig, dropout: float
) -> list[float]:
    """Return the seconds of every step."""
    model, adapter = adapted(make, dropout)
    times: list[float] = []

    def on_step(_: object) -> bool:
        times.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as folder:
        Fit(
            model=model,
            adapter=adapter,
            examples=rows,
            collate=collate,
            training=training,
            folder=Path(folder),
            meter=Meter(model),
            on_step=on_step,
        ).run()
    return [b - a for a, b in itertools.pairwise(times)][SKIPPED:]


class Clock(transformers.TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())


def theirs(
    make: Callable[[], Any], rows: list[list[int]], training: TrainingConfig, dropout: float
) -> list[float]:
    """Return the seconds of every step under HF Trainer."""
    model, adapter = adapted(make, dropout)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=training.max_steps,
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=training.learning_rate)
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collate,
            optimizers=(optimizer, None),
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return [b - a for a, b in itertools.pairwise(clock.times)][SKIPPED:]


def main(argv: list[str] | None = None) -> None:
    """Alternate short trainings of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args(argv)
    rows = []
    for name, (layers, width, length) in SIZES.items():
        generator = torch.Generator().manual_seed(0)
        data = torch.randint(5, 500, (64, length), generator=generator).tolist()
        for passes, dropout in ((1, 0.0), (4, 0.0), (1, 0.1)):
            training = TrainingConfig(
                max_steps=options.steps,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=passes,
            )
            make = partial(model_of, layers, width)
            found: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(options.rounds):
                for who, train in (("ours", ours), ("theirs", theirs)):
                    found[who].append(statistics.median(train(make, data, training, dropout)))
            ratio = median_ratio(found["ours"], found["theirs"])
            milliseconds = {who: statistics.median(each) * 1e3 for who, each in found.items()}
            rows.append(
                Row(
                    f"{name}, {passes} × 4 × {length} tokens"
                    + (f", dropout {dropout:g}" if dropout else ""),
                    f"{ratio:.3f}×",
                    f"≤ {REACH:.2f}×",
                    ratio <= REACH,
                    f"{milliseconds['ours']:.2f} ms against {milliseconds['theirs']:.2f} ms",
                )
            )
    print_table("A training step against HF Trainer's, LoRA on all linear layers, r = 8", rows)


if __name__ == "__main__":
    main()
