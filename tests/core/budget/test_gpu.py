"""Devices by torch's names and by the GPU's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lora_lab.budget.gpu import GPUS, gpu_of, own_device
from lora_lab.errors import ConfigError
from tests.helpers.made_up_hardware import cpu_can

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu"), "mps", "meta"])
def test_no_gpu(device: torch.device | str | None) -> None:
    assert gpu_of(device) is None


@pytest.mark.parametrize("name", ["T4", "t4", "L4", "A100", "H100"])
def test_a_gpu_by_its_name(name: str) -> None:
    found = gpu_of(name)
    assert found
    assert (found.name, found.capability) == (name.upper(), GPUS[name.upper()])
    assert found.torch == VERSION


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_where_none_is_here_is_an_a100(device: torch.device | str) -> None:
    assert gpu_of(device) == gpu_of("A100")


def test_the_device_at_hand_is_asked_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_can(monkeypatch, cuda=True, capability=(7, 5))
    model = nn.Linear(2, 2)
    found = gpu_of(own_device(model))
    assert found
    assert (found.capability, found.name) == ((7, 5), "a GPU of capability 7.5")
    assert found == gpu_of("cpu")


def test_amds_gpus_choose_by_other_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert gpu_of("cuda") is None
    assert gpu_of("T4")


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(ConfigError, match="device 'Voodoo2' is not known; use one of cpu, cuda, P"):
        gpu_of("Voodoo2")


def test_own_device() -> None:
    assert own_device(nn.Linear(2, 2)) == torch.device("cpu")
    assert own_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert own_device(nn.Identity()) is None
