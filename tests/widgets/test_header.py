"""The header's line on who else is on the GPU. The driver is faked."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_lab_widgets import Workbench
from lora_lab_widgets import header as module
from lora_lab_widgets.header import PACE, Header
from lora_lab_widgets.panel import Tick
from lora_lab_widgets.planned import Planned, Price
from tests.helpers.tiny_chat import tiny_chat_model

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
LINE = "12 GiB in use by others: python (42) 11 GiB"


class Driver:
    """Answers when it is let, and counts the questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.asked, self.line = 1000.0, 0, LINE
        self.let = threading.Event()
        self.let.set()
        monkeypatch.setattr(module, "used_by_others", self._answer)
        monkeypatch.setattr(module, "devices_of", lambda model: model.devices)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def _answer(self, device: torch.device) -> str:
        assert device == CUDA
        self.asked += 1
        assert self.let.wait(30)
        return self.line


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch)


def header_on(device: torch.device, **traits: Any) -> Header:
    """Return the header of a model on a device."""
    card = SimpleNamespace(name="tiny", dtype="float32")
    lm = SimpleNamespace(card=card, model=SimpleNamespace(devices=(CPU,)))
    settings = {"task": "mini-e2e", "method": "LoRA"}
    plan = SimpleNamespace(
        planned=Planned(settings, {}, Price()), tasks={}, observe=lambda *_: None
    )
    session: Any = SimpleNamespace(lm=lm, plan=plan)
    header = Header(session, **traits)
    lm.model.devices = (device,)
    return header


def settled(header: Header) -> None:
    """Wait until a question that is under way has its answer."""
    end = time.perf_counter() + 30
    while header._job.busy and header._job._outcome is None:
        assert time.perf_counter() < end
        time.sleep(0.002)


def test_who_else_is_on_the_gpu_is_shown_at_rest(driver: Driver) -> None:
    header = header_on(CUDA)
    header.update(Tick())
    settled(header)
    header.update(Tick())
    assert header.others == LINE
    driver.line = ""  # they have left
    driver.now += PACE
    header.update(Tick())
    settled(header)
    header.update(Tick())
    assert header.others == ""


def test_the_driver_is_asked_at_a_slow_pace_and_nobody_waits_for_it(driver: Driver) -> None:
    assert PACE >= 10
    header = header_on(CUDA)
    driver.let.clear()
    for _ in range(60):  # of a second each: one question hangs, and no second is asked
        header.update(Tick())
        driver.now += 1
    assert (driver.asked, header.others) == (1, "")
    driver.let.set()
    settled(header)
    for _ in range(60):
        header.update(Tick())
        settled(header)
        driver.now += 1
    assert header.others == LINE
    assert 2 <= driver.asked <= 2 + 60 / PACE


def test_on_a_cpu_nobody_is_asked(driver: Driver) -> None:
    header = header_on(CPU)
    header.update(Tick())
    assert (driver.asked, header.others, header._job.busy) == (0, "", False)


def test_several_gpus_are_named_and_each_is_asked_of(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = CUDA, torch.device("cuda:1"), torch.device("cuda:2")
    header = header_on(CUDA)
    header._lm.model.devices = gpus  # type: ignore[attr-defined]
    names = {0: "NVIDIA L4", 1: "NVIDIA T4", 2: "NVIDIA L4"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index])
    lines = dict(zip(gpus, ("1 GiB in use by others", "", "3 GiB in use by others"), strict=True))
    monkeypatch.setattr(module, "used_by_others", lines.__getitem__)
    header.update(Tick())
    settled(header)
    header.update(Tick())
    assert header.others == "1 GiB in use by others; 3 GiB in use by others"
    planned = SimpleNamespace(title=("LoRA", ""), settings={"task": "mini-e2e"})
    header._show_plan(planned)  # type: ignore[arg-type]
    assert header.device == "2 × NVIDIA L4 + NVIDIA T4 · float32"


def test_a_driver_that_fails_names_nobody(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    header = header_on(CUDA, others=LINE)
    monkeypatch.setattr(module, "used_by_others", lambda _: 1 / 0)
    header.update(Tick())
    settled(header)
    header.update(Tick())
    assert header.others == ""


def test_the_workbench_asks_for_its_models_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(Header, "update", lambda self, _: asked.append(self._lm.model.device))
    wb = Workbench(*tiny_chat_model(), output_dir=tmp_path)
    wb.panel._handle({"type": "tick", "seq": "a-1", "theme": "light", "width": 1000})
    assert asked == [CPU]
