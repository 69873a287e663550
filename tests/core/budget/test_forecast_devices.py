"""The closed form on a GPU against the dry run there; both take the kernels that torch takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lora_lab.anatomy import anatomy
from lora_lab.budget import budget, evaluate_price, price_table
from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import LoraConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.lora.targets import ranks
from tests.helpers.made_up_hardware import cpu_can
from tests.helpers.measured_step import BATCH, LENGTH, gpt2, llama, qwen3

ALL = LoraConfig(r=4, target_modules="all-linear")
STEP: dict[str, Any] = {"batch_size": BATCH, "sequence_length": LENGTH}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_llama() -> Any:
    return llama(64, layers=2)  # two heads of q share one of k and v


def dropping_gpt2() -> Any:
    return gpt2(64, layers=2, dropout=0.1)


@pytest.mark.parametrize(
    ("make", "device", "options", "math"),
    [
        (small_llama, "T4", {"dtype": "float32"}, True),
        (small_llama, "T4", {"dtype": "float16"}, True),
        (small_llama, "T4", {"dtype": "float16", "padding_mask": True}, False),
        (small_llama, "T4", {"dtype": "bfloat16", "padding_mask": True}, True),
        (small_llama, "A100", {"dtype": "float32"}, True),
        (small_llama, "H100", {"dtype": "bfloat16"}, False),
        (dropping_gpt2, "T4", {"dtype": "float32"}, False),
        (dropping_gpt2, "T4", {"dtype": "bfloat16"}, True),
        (dropping_gpt2, "L4", {"dtype": "bfloat16"}, False),
        (qwen3, "T4", {"dtype": "float32"}, True),
    ],
)
def test_closed_form_and_dry_run_agree(
    make: Any, device: str, options: dict[str, Any], math: bool
) -> None:
    model = make()
    forecast = budget(model, ALL, device=device, **options, **STEP)
    found = dry_run(model, ALL, device=device, **options, **STEP)
    assert forecast.notes == found.notes
    assert bool(found.notes) == math
    assert forecast.settings == found.settings
    assert forecast.settings.endswith(f"on {device}")
    rest = found.weights + found.optimizer
    assert forecast.adapted.total - rest == pytest.approx(found.peak - rest, rel=0.02)


def test_full_fine_tuning_is_priced_there_too() -> None:
    model = gpt2(64)
    forecast = budget(model, ALL, device="T4", dtype="bfloat16", **STEP).full
    found = dry_run(model, device="T4", dtype="bfloat16", **STEP)
    rest = found.weights + found.optimizer
    assert found.notes
    assert forecast.total - rest == pytest.approx(found.peak - rest, rel=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_where_the_scores_are_most_of_it(dtype: str, dropout: float) -> None:
    model = llama(64, layers=2, attention_dropout=dropout)
    sizes: dict[str, Any] = {"batch_size": 2, "sequence_length": 512, "dtype": dtype}
    forecast = budget(model, ALL, device="T4", **sizes).adapted.total
    found = dry_run(model, ALL, device="T4", **sizes).peak
    assert forecast == pytest.approx(found, rel=0.02)
    # Two layers' probabilities in float32, four heads of them, and two more while one is left.
    assert forecast > 4 * (2 * 4 * 512**2 * 4)


def test_shared_heads_grow_with_the_square_only_where_no_fused_kernel_takes_them() -> None:
    model = anatomy(small_llama())

    def total(device: str, length: int) -> int:
        return budget(
            model, ALL, dtype="float16", sequence_length=length, device=device
        ).adapted.total

    assert total("L4", 4096) < 2 * total("L4", 2048)
    assert total("T4", 4096) > 3.5 * total("T4", 2048)


def test_the_browsers_table_is_of_that_device() -> None:
    model = anatomy(small_llama())
    price = price_table(model, dtype="float16", device="T4", **STEP)
    found = evaluate_price(json.loads(json.dumps(price)), ranks(model, ALL))
    assert found == budget(model, ALL, dtype="float16", device="T4", **STEP)
    assert found.notes


def test_the_device_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_llama()
    plain = budget(model, ALL, **STEP)
    cpu_can(monkeypatch, cuda=True, capability=(7, 5))
    found = budget(model, ALL, **STEP)
    assert found.adapted.activations > plain.adapted.activations
    assert found.notes == dry_run(model, ALL, **STEP).notes != ()
    assert budget(model, ALL, device="cpu", **STEP) == found  # the CPU has its ways now


def test_a_device_that_nobody_knows() -> None:
    for forecast in (budget, dry_run):
        with pytest.raises(ConfigError, match="device 'Voodoo2' is not known"):
            forecast(small_llama(), ALL, device="Voodoo2")
