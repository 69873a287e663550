"""Another device's ways on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from lora_lab._util import hardware as module
from lora_lab._util.hardware import Hardware


def cpu_can(monkeypatch: pytest.MonkeyPatch, kind: type[Hardware] = Hardware, **what: Any) -> None:
    """Have the CPU's `Hardware` be of another kind, or say something else of itself."""
    monkeypatch.setitem(module.MAKERS, "cpu", lambda device: kind(device, **what))


@dataclass
class Counts:
    """What made-up devices say of their memory, in bytes, and what they are told."""

    now: dict[torch.device, int]
    most: dict[torch.device, int] = field(default_factory=dict)
    free: dict[torch.device, tuple[int, int]] = field(default_factory=dict)
    resets: list[torch.device] = field(default_factory=list)
    emptied: list[torch.device] = field(default_factory=list)


def counting(monkeypatch: pytest.MonkeyPatch, allocated: Mapping[torch.device, int]) -> Counts:
    """Have devices count as CUDA's allocator does, from these bytes on."""
    counts = Counts(dict(allocated), dict(allocated))

    class Counting(Hardware):
        def allocated(self) -> int:
            return counts.now[self.device]

        def peak(self) -> int:
            return counts.most[self.device]

        def reset_peak(self) -> None:
            counts.resets.append(self.device)

        def reserved(self) -> int:
            return self.allocated()

        def free_and_total(self) -> tuple[int, int] | None:
            return counts.free.get(self.device)

        def empty_cache(self) -> None:
            counts.emptied.append(self.device)

    for kind in {device.type for device in allocated}:
        monkeypatch.setitem(
            module.MAKERS,
            kind,
            lambda device: Counting(device, "CUDA memory", cuda=True, keeps_peak=True),
        )
    return counts
