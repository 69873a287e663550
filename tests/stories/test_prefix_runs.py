"""Runs that train learned tokens: they learn, evaluate, save and load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import LoraConfig, PrefixEmbedConfig, PrefixLayerConfig
from tests.helpers.tiny_run import tiny_lm, tiny_task

EMBED = PrefixEmbedConfig(prefix_length=4, infix_length=2)
LAYER = PrefixLayerConfig(prefix_length=4, infix_length=2)
LORA = LoraConfig(r=4, lora_alpha=8)


CASES = {
    "embed": (EMBED, 0.05, False),
    "layer": (LAYER, 0.05, True),
    "lora-embed": ([LORA, EMBED], 0.01, True),
    "lora-layer": ([LORA, LAYER], 0.01, False),
}


@pytest.mark.parametrize(("config", "rate", "checkpointing"), CASES.values(), ids=CASES)
def test_a_run_learns_evaluates_saves_and_loads(
    tmp_path: Path, config: Any, rate: float, checkpointing: bool
) -> None:
    lm = tiny_lm()
    result = ll.train(
        lm,
        tiny_task(),
        config,
        output_dir=tmp_path,
        max_steps=12,
        max_length=64,
        eval_examples=2,
        save_steps=0,
        learning_rate=rate,
        gradient_checkpointing=checkpointing,
    ).result(120)
    assert result.metrics["loss_after"] < result.metrics["loss_before"] - 0.5
    other = tiny_lm()
    load_adapter(other.model, result.adapter_folder)
    ids = torch.tensor([[70, 35, 71, 35, 72]])
    lm.model.eval()
    with torch.no_grad():
        assert torch.equal(other.model(ids).logits, lm.model(ids).logits)
