"""The memory of each device of a model that is spread, as the run panel gets it."""

from __future__ import annotations

from lora_lab.budget.reading import MemoryReading
from lora_lab.training.snapshot import Snapshot
from lora_lab_widgets.serialize import describe


def test_the_memory_of_each_device_comes_along() -> None:
    spread = MemoryReading(*(10, 20, "CUDA memory"), devices=(("cuda:0", 7, 12), ("cuda:1", 3, 8)))
    shown = describe(Snapshot("run-1", memory=spread))["memory"]
    assert shown == {
        "current": 10,
        "peak": 20,
        "kind": "CUDA memory",
        "devices": [
            {"name": "cuda:0", "current": 7, "peak": 12},
            {"name": "cuda:1", "current": 3, "peak": 8},
        ],
    }
