"""The code of a run that people copy: it runs as it stands, and makes the same configs."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    HeadConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
)
from lora_lab.runs.shown_code import shown_code
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training.api import train
from tests.helpers.tiny_run import tiny_lm, tiny_task

CONFIGS = {
    "LoRA": LoraConfig(),
    "painted": LoraConfig(
        r=4,
        lora_alpha=16.0,
        target_modules=["q", "model.layers.1.mlp.down_proj"],
        rank_pattern={r"^model\.layers\.[0-7]\..*": 2},
        use_rslora=True,
        init_lora_weights="pissa",
    ),
    "AdaLoRA": AdaLoraConfig(tinit=3, deltaT=2),
    "FT": FullConfig(),
    "FT-Top2": FullConfig(top_layers=2),
    "BitFit": BitFitConfig(new_biases=True),
    "IA3": IA3Config(),
    "OFT": OFTConfig(oft_block_size=4),
    "Adapter^H": BottleneckConfig("H", r=3),
    "LoRA+PE": [LoraConfig(r=2), PrefixEmbedConfig(3, 0)],
    "LoRA+PL": [LoraConfig(r=2), PrefixLayerConfig()],
    "with a head": [LoraConfig(r=2), HeadConfig()],
}


def ran(code: str) -> dict[str, Any]:
    """Return the names that code defines, run as a cell of its own."""
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("name", CONFIGS)
def test_it_runs_as_it_stands_and_makes_the_same_configs(name: str) -> None:
    config = CONFIGS[name]
    training = TrainingConfig(max_steps=7, learning_rate=3e-4, lr_scheduler_type="cosine")
    found = ran(shown_code(config, training))
    made = found["config"]
    assert (list(made) if isinstance(config, list) else made) == config
    assert found["training"] == training


def test_rank_and_targets_stand_in_it_even_where_they_are_defaults() -> None:
    assert "r=8, target_modules=('q', 'v')" in shown_code(LoraConfig(), TrainingConfig())


def test_its_last_line_trains_them(tmp_path: Any) -> None:
    code = shown_code(LoraConfig(r=2), TrainingConfig(max_steps=1, eval_examples=0, kept_texts=0))
    last = code.splitlines()[-1]
    assert last == "# run = ll.train(lm, task, config, **training.to_dict())"
    made = ran(code)
    run = train(
        tiny_lm(), tiny_task(), made["config"], output_dir=tmp_path, **made["training"].to_dict()
    )
    run.wait(60)
    assert run.training == made["training"]
    assert run.configs == (made["config"],)
