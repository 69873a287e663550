"""float32 masters of what is trained in half precision, in closed form and in a dry run."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab.budget import budget
from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import BitFitConfig, FullConfig, LoraConfig
from tests.helpers.measured_step import gpt2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "config",
    [
        FullConfig(),
        FullConfig(top_layers=2),
        BitFitConfig(),
        LoraConfig(r=4, target_modules=["q"], bias="all"),
        [LoraConfig(r=4, target_modules=["q"]), BitFitConfig()],
    ],
)
@pytest.mark.parametrize(
    ("batch", "length", "optimizer"), [(4, 64, "adamw"), (1, 2, "sgd"), (4, 64, "adafactor")]
)
def test_masters_of_16_bits_are_those_of_a_dry_run(
    config: Any, dtype: str, batch: int, length: int, optimizer: str
) -> None:
    """With two tokens the peak lies where gradients are copied up."""
    options = {"batch_size": batch, "sequence_length": length, "optimizer": optimizer}
    found = budget(gpt2(), config, dtype=dtype, **options).adapted
    run = dry_run(gpt2(), config, dtype=dtype, **options)
    assert (found.weights, found.gradients) == (run.weights, run.gradients)
    counts = 4 * sum(2 for _ in gpt2().parameters())  # of AdamW's steps: float32, tensor by tensor
    assert run.optimizer - counts <= found.optimizer <= run.optimizer
    assert found.total == pytest.approx(run.peak, rel=0.03)


def test_full_fine_tuning_of_a_7b_in_bfloat16() -> None:
    """Rajbhandari et al. (2020), section 3.1: K = 12 bytes of optimizer state for Adam."""
    found = budget("llama-2-7b", FullConfig(), dtype="bfloat16")
    numbers = found.parameters_total
    assert found.adapted == found.full
    assert (found.full.weights, found.full.optimizer) == (2 * numbers, 12 * numbers)
    assert found.full_checkpoint_bytes == found.checkpoint_bytes == 2 * numbers
