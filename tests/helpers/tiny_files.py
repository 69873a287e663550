"""A tiny language model and a task as files, for what loads both by name."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.helpers.tiny_run import tiny_lm, tiny_task


def tiny_model_folder(folder: Path) -> Path:
    """A random Llama of 2 layers with its tokenizer."""
    lm = tiny_lm()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def tiny_task_file(path: Path) -> Path:
    """Rows of a prompt and a completion."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows([e.prompt, e.completion] for e in tiny_task().train)
    return path


def tiny_recipe(folder: Path) -> dict:
    """The plain values of a recipe on both."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "model": {"name": str(tiny_model_folder(folder / "model")), "device": "cpu"},
        "task": {
            "name": str(tiny_task_file(folder / "task.csv")),
            "prompt": "prompt",
            "completion": "completion",
        },
        "configs": [{"class": "LoraConfig", "r": 4, "target_modules": ["q", "v"]}],
        "training": {
            "max_steps": 4, "per_device_train_batch_size": 4, "warmup_steps": 0,
            "eval_examples": 2, "max_length": 32, "save_steps": 2,
        },
        "output_dir": str(folder / "runs"),
    }  # fmt: skip
