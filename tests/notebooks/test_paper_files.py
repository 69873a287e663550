"""The papers' runs as files: what they set is what the tables print."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_lab.configs import LoraConfig
from lora_lab.paper import table
from lora_lab.runs.run_file import RunConfig
from lora_lab.sweeps.plan import SweepPlan

FOLDER = Path(__file__).parents[2] / "notebooks" / "paper"
GLUE = ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B")


def printed(number: int, column: str, model: str = "") -> dict[str, float]:
    """Return {setting: value} of a table of hyperparameters."""
    found = table(number)
    name = found.header.index("setting")
    values = zip(found.rows, found.column(column), strict=True)
    return {
        row[name]: value
        for row, value in values
        if value is not None and (not model or row[0] == model)
    }


@pytest.mark.parametrize("task", GLUE)
def test_glue(task):
    read = RunConfig.read(FOLDER / f"glue-{task.lower().replace('-', '')}.yaml")
    wanted = printed(9, task, "RoBERTa-base LoRA")
    training = read.training
    assert training.per_device_train_batch_size == wanted["batch size"]
    assert training.num_train_epochs == wanted["epochs"]
    assert training.learning_rate == wanted["learning rate"]
    assert training.max_length == wanted["sequence length"]
    assert (training.warmup_steps, training.lr_scheduler_type) == (0.06, "linear")
    (config,) = read.configs
    assert isinstance(config, LoraConfig)
    assert config.r == wanted["r"]
    assert config.target_modules == ("q", "v")


@pytest.mark.parametrize("name", ["e2e-gpt2-medium", "e2e-gpt2-medium-ranks"])
def test_e2e(name):
    path = FOLDER / f"{name}.yaml"
    read = SweepPlan.read(path).run_config if "ranks" in name else RunConfig.read(path)
    wanted, training = printed(11, "E2E"), read.training
    assert training.per_device_train_batch_size == wanted["batch size"]
    assert training.learning_rate == wanted["learning rate"]
    assert training.warmup_steps == wanted["warm-up steps"]
    assert training.weight_decay == wanted["weight decay"]
    assert training.label_smoothing_factor == wanted["label smoothing"]
    assert read.task["decoding"] == {
        "num_beams": wanted["beam size"],
        "length_penalty": wanted["length penalty"],
        "no_repeat_ngram_size": wanted["no repeat n-gram size"],
    }
    (config,) = read.configs
    assert isinstance(config, LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 32, wanted["dropout"])


def test_the_ranks_are_table_18s():
    grid = SweepPlan.read(FOLDER / "e2e-gpt2-medium-ranks.yaml").space.grid
    assert list(grid["r"]) == list(table(18).column("r"))
