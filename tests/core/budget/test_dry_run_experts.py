"""Budget and dry run of models with routed experts, against real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lora_lab as ll
from tests.helpers.measured_step import BATCH, LENGTH, measured_peak
from tests.helpers.tiny_experts import tiny_experts
from tests.helpers.versions import needs_grouped

SIZES = {"batch_size": BATCH, "sequence_length": LENGTH}


def config(**changes: Any) -> ll.LoraConfig:
    settings = {"target_modules": ["o_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
    return ll.LoraConfig(r=4, **{**settings, **changes})


MODELS = [*(pytest.param(name, marks=needs_grouped) for name in ("mixtral", "gpt-oss")), "llama4"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_step_takes_what_was_foreseen(name: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    model = tiny_experts(name, hidden_size=64).to(dtype).train()
    dry = ll.dry_run(model, config(), **SIZES)
    forecast = ll.budget(model, config(), **SIZES)
    adapter = ll.attach(model, config())
    assert forecast.parameters_trainable == adapter.trainable
    assert forecast.adapted.gradients == dry.gradients == 4 * adapter.trainable
    assert dry.optimizer == pytest.approx(forecast.adapted.optimizer, rel=0.01)
    peak = measured_peak(model)
    assert dry.peak == pytest.approx(peak, rel=0.05)
    assert forecast.adapted.total == pytest.approx(peak, rel=0.2)
    assert forecast.approximate


def test_the_table_holds_what_is_trained_of_a_router() -> None:
    model = tiny_experts("mixtral")
    found = ll.budget(model, config(target_parameters=["gate.weight", "down_proj"]), **SIZES)
    adapter = ll.attach(model, config(target_parameters=["gate.weight", "down_proj"]))
    assert found.parameters_trainable == adapter.trainable
