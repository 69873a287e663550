"""Other processes on a GPU, as NVML or nvidia-smi would tell of them; both are faked here."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from lora_lab.training import gpu_processes as module
from lora_lab.training.gpu_memory import GpuMemory, used_by_others
from lora_lab.training.gpu_processes import GpuProcess, in_words, other_processes

DEVICE = torch.device("cuda:0")
UUID = "6b1c8d2e-0000-4a4a-9c9c-0123456789ab"
GIB = 2**30


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """A GPU that has a name, and nobody who could tell of its processes."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=UUID), raising=False
    )
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it fails
    monkeypatch.setattr(module.shutil, "which", lambda _: None)


def fake_nvml(calls):
    """NVML with four processes, one of them this one; `calls` gets what it is asked."""
    used = {4242: 3 * GIB, os.getpid(): 9 * GIB, 77: None, 99: 5 * GIB}
    names = {4242: "/usr/bin/python3.11 -m train", 99: b"/opt/app/server"}  # no 77: LookupError
    running = [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in used.items()]
    return SimpleNamespace(
        NVMLError=LookupError,
        nvmlInit=lambda: calls.append("open"),
        nvmlShutdown=lambda: calls.append("close"),
        nvmlDeviceGetHandleByUUID=calls.append,
        nvmlDeviceGetComputeRunningProcesses=lambda _: running,
        nvmlSystemGetProcessName=names.__getitem__,
    )


def smi(monkeypatch, text):
    """nvidia-smi that answers `text`; returns what it was called with."""
    calls = []

    def run(command, **options):
        calls.append(command)
        assert "shell" not in options
        assert options["timeout"] <= 10
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(module.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(module.subprocess, "run", run)
    return calls


def test_nvml_names_each_other_process_the_largest_first(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(calls))
    assert other_processes(DEVICE) == (
        GpuProcess(99, "server", 5 * GIB),
        GpuProcess(4242, "python3.11", 3 * GIB),
        GpuProcess(77, "", None),
    )
    assert calls == ["open", f"GPU-{UUID}", "close"]


def test_without_nvml_nvidia_smi_is_asked_without_a_shell(monkeypatch):
    calls = smi(
        monkeypatch,
        f"GPU-{UUID}, 4242, 3072, /usr/bin/python3.11\n"
        f"GPU-other, 5, 100, /usr/bin/other\n"
        f"GPU-{UUID}, {os.getpid()}, 1, python\n"
        f"GPU-{UUID}, 77, [N/A], [Not Found]\n",
    )
    assert other_processes(DEVICE) == (
        GpuProcess(4242, "python3.11", 3 * GIB),
        GpuProcess(77, "", None),
    )
    assert calls[0][0] == "/usr/bin/nvidia-smi"


@pytest.mark.parametrize("text", ["", "No devices were found\n", "a, b, c, d\n, , ,\n\x00"])
def test_what_cannot_be_read_names_nobody(monkeypatch, text):
    smi(monkeypatch, text)
    assert other_processes(DEVICE) == ()


def test_a_driver_that_hangs_or_is_not_there_names_nobody(monkeypatch):
    assert other_processes(DEVICE) == ()
    smi(monkeypatch, "")

    def hanging(*_, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", 5)

    monkeypatch.setattr(module.subprocess, "run", hanging)
    assert other_processes(DEVICE) == ()


def test_a_refusal_says_who_has_the_rest():
    who = [GpuProcess(pid, "python", (9 - pid) * GIB) for pid in range(1, 6)]
    assert in_words(who) == ": python (1) 8 GiB, python (2) 7 GiB, python (3) 6 GiB, 2 more"
    assert in_words([GpuProcess(7, "", None)]) == ": process (7)"
    assert in_words([]) == ""
    room = GpuMemory(GIB, 16 * GIB, 12 * GIB, processes=(GpuProcess(42, "python", 11 * GIB),))
    assert str(room) == "1 GiB free of 16 GiB, 12 GiB in use by others: python (42) 11 GiB"


@pytest.mark.parametrize(
    ("listed", "free", "line"),
    [
        ([(42, 11 * GIB)], 4 * GIB, "12 GiB in use by others: process (42) 11 GiB"),
        ([], 4 * GIB, "12 GiB in use by others"),  # in a container the driver names nobody
        ([(os.getpid(), 2 * GIB)], 16 * GIB - 400 * 2**20, ""),  # CUDA's own
        ([(7, 300 * 2**20)], 15 * GIB, "1 GiB in use by others: process (7) 300 MiB"),
    ],
)
def test_who_else_is_there_is_told_at_rest(monkeypatch, listed, free, line):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 16 * GIB))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _: 0)
    rows = [f"GPU-{UUID}, {pid}, {used // 2**20}, [Not Found]" for pid, used in listed]
    smi(monkeypatch, "\n".join(rows))
    assert used_by_others(DEVICE) == line


def test_on_a_cpu_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: 1 / 0)
    assert used_by_others(torch.device("cpu")) == ""
