"""Optimizer state against the optimizers themselves, and a step's peak with each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lora_lab.budget import OPTIMIZERS, budget
from lora_lab.budget.optimizers import state_rule
from lora_lab.configs import LoraConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.api import attach
from tests.helpers.measured_step import BATCH, LENGTH, fused_adamw, gpt2, llama, measured_peak

ALL = LoraConfig(r=4, target_modules="all-linear")
REAL: dict[str, Any] = {
    "adamw": fused_adamw,
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adafactor": transformers.Adafactor,
}
SHAPES = [(7,), (48, 32), (4096,), (1, 5), (3, 16, 8), (64, 64)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def real_state(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all state but single numbers, such as the step count."""
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )


@pytest.mark.parametrize("name", REAL)
def test_state_is_what_the_optimizer_makes(name: str) -> None:
    parameters = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = REAL[name](parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    rule = state_rule(name)
    assert sum(map(rule.size, SHAPES)) == real_state(optimizer)


@given(rows=st.integers(1, 300), columns=st.integers(1, 300))
def test_8_bit_state_is_bitsandbytes_layout(rows: int, columns: int) -> None:
    """Two moments: uint8 and one float32 scale for 256 entries, or float32 below 4096 entries."""
    entries = rows * columns
    if entries < 4096:
        tensors = [np.zeros(entries, np.float32)] * 2
    else:
        scales = np.zeros(len(range(0, entries, 256)), np.float32)
        tensors = [np.zeros(entries, np.uint8), scales] * 2
    expected = sum(tensor.nbytes for tensor in tensors)
    assert state_rule("adamw_8bit").size((rows, columns)) == expected


@pytest.mark.parametrize("config", [None, ALL], ids=["full", "all-linear"])
@pytest.mark.parametrize(("batch", "length"), [(BATCH, LENGTH), (1, 8)])
@pytest.mark.parametrize("vocab", [256, 4096])
@pytest.mark.parametrize("name", REAL)
def test_forecast_is_within_2_percent_of_a_measured_step(
    name: str, vocab: int, batch: int, length: int, config: Any
) -> None:
    """With 8 tokens, the peak lies where the optimizer is at work."""
    for make, dtype in ((llama, torch.float32), (gpt2, torch.float32), (llama, torch.bfloat16)):
        model = make(vocab).to(dtype).train()
        found = budget(
            model, config or ALL, batch_size=batch, sequence_length=length, optimizer=name
        )
        memory = found.full
        if config:
            attach(model, config)
            memory = found.adapted
        measured = measured_peak(model, batch, length, make_optimizer=REAL[name])
        assert memory.total - memory.weights == pytest.approx(measured - memory.weights, rel=0.02)


def test_the_parts_with_each_optimizer() -> None:
    """Llama-2 7B with a LoRA at every matrix: Σ r(in + out) numbers, in tensors of r·in, r·out."""
    r, d, ff, layers = 16, 4096, 11008, 32
    sides = [d] * 8 + [d, ff] * 3  # q k v o, gate up down: A's width and B's height
    numbers = layers * sum(r * side for side in sides)
    config = LoraConfig(r=r, target_modules="all-linear")

    def state(optimizer: str) -> int:
        found = budget("llama-2-7b", config, optimizer=optimizer)
        assert found.parameters_trainable == numbers
        assert OPTIMIZERS[optimizer] in found.settings
        return found.adapted.optimizer

    assert state("adamw") == 8 * numbers
    assert state("sgd") == 0
    assert state("adamw_8bit") == 2 * numbers + 8 * numbers // 256  # every tensor is large
    assert state("adafactor") == layers * sum(4 * (r + side) for side in sides)


def test_full_fine_tuning_with_8_bit_states_is_a_quarter_of_float32s() -> None:
    plain, small = (budget("smollm2-135m", ALL, optimizer=o).full for o in ("adamw", "adamw_8bit"))
    assert small.optimizer / plain.optimizer == pytest.approx(0.25 * (1 + 4 / 256), rel=2e-3)
    assert (small.weights, small.gradients) == (plain.weights, plain.gradients)


def test_an_unknown_optimizer_is_refused() -> None:
    known = "adamw, adamw_8bit, sgd, adafactor"
    with pytest.raises(ConfigError, match=f"optimizer 'lion' is not modeled; use one of {known}"):
        state_rule("lion")
    assert ", ".join(OPTIMIZERS) == known
