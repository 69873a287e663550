"""The memory of a model over several devices, recorded: the CPU plays two GPUs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import lora_lab as ll
from lora_lab.budget.meter import Meter
from lora_lab.errors import RunError
from lora_lab.training import device_memory
from lora_lab.training.device_memory import empty_caches, memories_of, notes, together
from lora_lab.training.gpu_memory import CAP, GpuMemory
from tests.helpers.made_up_hardware import Counts, counting
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 1)
GIB = 2**30


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Both devices, with 16 GiB each; the model's layers compute on both."""
    monkeypatch.delenv(CAP, raising=False)
    counts = counting(monkeypatch, {FIRST: 3 * GIB, SECOND: 2 * GIB})
    counts.free |= {FIRST: (12 * GIB, 16 * GIB), SECOND: (6 * GIB, 16 * GIB)}
    for module in (device_memory, sys.modules[Meter.__module__]):
        monkeypatch.setattr(module, "devices_of", lambda _: (FIRST, SECOND))
    monkeypatch.setattr("lora_lab.training.gpu_memory.other_processes", lambda _: ())
    return counts


@pytest.mark.usefixtures("counts")
def test_every_device_is_asked_and_all_count_together() -> None:
    found = memories_of(tiny_lm().model)
    assert found == {
        FIRST: GpuMemory(12 * GIB, 16 * GIB, 1 * GIB),
        SECOND: GpuMemory(6 * GIB, 16 * GIB, 8 * GIB),
    }
    assert together(found) == GpuMemory(18 * GIB, 32 * GIB, 9 * GIB)
    assert together({FIRST: found[FIRST]}) is found[FIRST]
    assert together({}) is None


def test_freed_blocks_go_back_on_every_device(counts: Counts) -> None:
    empty_caches(tiny_lm().model)
    assert counts.emptied == [FIRST, SECOND]


def test_a_cpu_has_no_memory_of_its_own() -> None:
    assert memories_of(tiny_lm().model) == {}


def test_each_device_has_its_line_in_proportion_to_its_weights() -> None:
    model = torch.nn.Module()
    model.first = torch.nn.Linear(30, 10, bias=False)
    model.second = torch.nn.Linear(10, 10, bias=False, device="meta")
    meta = torch.device("meta")
    room = {FIRST: GpuMemory(900, 1000, 0), meta: GpuMemory(200, 1000, 0)}
    training = ll.TrainingConfig(per_device_train_batch_size=4)
    forecast = {4: 1000}.__getitem__
    lines = notes(model, forecast, training, room)  # type: ignore[arg-type]
    assert [line.partition(" beside")[0] for line in lines] == [
        "cpu: a step needs about 750 B",
        "meta: a step needs about 250 B",
    ]
    assert "fewer blocks" not in lines[0]
    assert lines[1].endswith("; give it fewer blocks (device_map), or take a smaller batch")
    assert notes(model, forecast, training, {FIRST: room[FIRST]}) == []  # type: ignore[arg-type]


def test_a_run_over_two_devices_says_what_each_takes(counts: Counts, tmp_path: Path) -> None:
    run = ll.train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=1)
    run.result(60)
    assert [note.partition(":")[0] for note in run.notes if "a step needs about" in note] == [
        "cpu",
        "cuda",
    ]
    memory = run.snapshot.memory
    assert memory is not None
    assert [name for name, _, _ in memory.devices] == ["cpu", "cuda:1"]
    assert memory.kind == "CUDA memory"
    counts.free |= {FIRST: (0, 16 * GIB), SECOND: (0, 16 * GIB)}
    counts.now |= {FIRST: 16 * GIB, SECOND: 16 * GIB}
    other = ll.train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=1)
    with pytest.raises(RunError, match=r"training will not fit: .* 0 B free of 32 GiB"):
        other.result(60)
