"""Who else is at work on a GPU: each other process with its memory, where the driver tells."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch

from lora_lab._util.format import format_bytes

_QUERY = "--query-compute-apps=gpu_uuid,pid,used_memory,process_name"
_PATIENCE = 5.0  # seconds; a driver that hangs is not waited for
_SHOWN = 3


@dataclass(frozen=True)
class GpuProcess:
    """Another process on the GPU.

    Attributes:
        pid: its number.
        name: of its program, without folders; "" where the driver does not tell.
        used: bytes; None where the driver does not tell.
    """

    pid: int
    name: str
    used: int | None

    def __str__(self) -> str:
        used = "" if self.used is None else f" {format_bytes(self.used)}"
        return f"{self.name or 'process'} ({self.pid}){used}"


def other_processes(device: torch.device) -> tuple[GpuProcess, ...]:
    """Return the other processes on a CUDA device, the largest first; none where nobody tells.

    Asked are NVML through `pynvml`, if it is installed, or else `nvidia-smi`. In a container the
    driver may show no process but one's own, or none.
    """
    uuid = f"GPU-{str(torch.cuda.get_device_properties(device).uuid).removeprefix('GPU-')}"
    for ask in (_from_nvml, _from_nvidia_smi):
        # Nothing hangs on the answer: whatever a driver does instead of giving one is none.
        with contextlib.suppress(Exception):
            others = {each.pid: each for each in ask(uuid) if each.pid != os.getpid()}
            return tuple(sorted(others.values(), key=lambda each: -(each.used or 0)))
    return ()


def in_words(processes: Iterable[GpuProcess]) -> str:
    """Return ": python (4242) 3 GiB, Xorg (99) 120 MiB", with the largest; "" of none."""
    names = list(map(str, processes))
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return f": {', '.join([*names[:_SHOWN], *more])}" if names else ""


def _from_nvml(uuid: str) -> list[GpuProcess]:
    pynvml: Any = importlib.import_module("pynvml")  # no package of ours: it may be there
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        return [GpuProcess(p.pid, _name(pynvml, p.pid), p.usedGpuMemory) for p in processes]
    finally:
        pynvml.nvmlShutdown()


def _name(pynvml: Any, pid: int) -> str:
    try:
        name = pynvml.nvmlSystemGetProcessName(pid)
    except pynvml.NVMLError:
        return ""
    return _short(name.decode(errors="replace") if isinstance(name, bytes) else name)


def _from_nvidia_smi(uuid: str) -> Iterator[GpuProcess]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    answer = subprocess.run(
        [program, _QUERY, "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=True,
    )
    for line in answer.stdout.splitlines():
        where, pid, used, name = (part.strip() for part in line.split(",", 3))
        if where == uuid:
            size = int(used) * 2**20 if used.isdecimal() else None  # MiB, or "[N/A]"
            yield GpuProcess(int(pid), _short(name), size)


def _short(name: str) -> str:
    """Return a program's file name; "" of "[Not Found]"."""
    return "" if name.startswith("[") else PurePath(name.split(" -")[0]).name[:40]
