"""What will not fit is refused device by device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_lab.budget.dry_run import DryRun
from lora_lab.configs import LoraConfig, TrainingConfig
from lora_lab.training import gpu_memory as module
from lora_lab.training.gpu_memory import Forecast, GpuMemory, OutOfMemoryForecastError

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
TRAINING = TrainingConfig(max_steps=1, per_device_train_batch_size=4)


@pytest.fixture
def forecast(monkeypatch: pytest.MonkeyPatch) -> Forecast:
    """A step takes 100 bytes an example on one device, 150 on the other, and 7 more on each."""

    def dry_run(*_: object, batch_size: int, **_options: Any) -> DryRun:
        extras = {"cuBLAS workspaces": 7, "cached blocks": 1000}
        each = {FIRST: 100 * batch_size, SECOND: 150 * batch_size}
        return DryRun(9999, 50, 0, 0, 0, 0.0, "", extras, (), each)

    monkeypatch.setattr(module, "dry_run", dry_run)
    return Forecast(None, LoraConfig(), TRAINING, 64, FIRST)


def check(
    forecast: Forecast, monkeypatch: pytest.MonkeyPatch, first: int, second: int | None
) -> None:
    free = {FIRST: first, SECOND: second}
    rooms = {d: None if n is None else GpuMemory(n, 10**6, 0) for d, n in free.items()}
    monkeypatch.setattr(module, "gpu_memory", rooms.__getitem__)
    forecast.check(GpuMemory(10**6, 10**6, 0))  # all of them together have plenty


def test_what_each_needs(forecast: Forecast) -> None:
    assert forecast.each(4) == {FIRST: 407, SECOND: 607}
    assert forecast(4) == 407 + 607


@pytest.mark.parametrize("second", [607, None])  # None: the CPU's, which nobody knows
def test_each_device_needs_its_own_part_only(
    forecast: Forecast, monkeypatch: pytest.MonkeyPatch, second: int | None
) -> None:
    check(forecast, monkeypatch, 407, second)


@pytest.mark.parametrize(
    ("first", "second", "where", "size"),
    [(407, 606, "cuda:1: a step needs 607 B", 2), (399, 700, "cuda:0: a step needs 407 B", 2)],
)
def test_the_one_that_lacks_is_named(
    forecast: Forecast,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    second: int,
    where: str,
    size: int,
) -> None:
    with pytest.raises(OutOfMemoryForecastError, match=f"will not fit on {where}") as caught:
        check(forecast, monkeypatch, first, second)
    assert caught.value.proposal["per_device_train_batch_size"] == size


def test_a_model_on_one_device_is_named_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def dry_run(*_: object, batch_size: int, **_options: Any) -> DryRun:
        return DryRun(50 + 100 * batch_size, 50, 0, 0, 0, 0.0, "", {"cached blocks": 3})

    monkeypatch.setattr(module, "dry_run", dry_run)
    forecast = Forecast(None, LoraConfig(), TRAINING, 64, FIRST)
    assert forecast(4) == 403
    forecast.check(GpuMemory(403, 10**6, 0))
    with pytest.raises(OutOfMemoryForecastError, match="will not fit: a step needs 403 B beside"):
        forecast.check(GpuMemory(402, 10**6, 0))
