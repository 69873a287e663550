"""Lines of the GPU script that go wrong; no torch, so that their processes start at once."""

from __future__ import annotations

import os
import threading

from benchmarks._measure import Row
from benchmarks.gpu.lines import Line, Place


def line(name: str) -> Line:
    return Line(name, f"what {name}", "all well", f"tests.helpers.gpu_lines:{name}", 60)


def works(place: Place) -> list[Row]:
    return [Row("its process", str(os.getpid()), "any", True)]


def fails(place: Place) -> list[Row]:
    raise RuntimeError("CUDA error: device-side\n assert triggered")


def dies(place: Place) -> list[Row]:
    os.kill(os.getpid(), 11)
    return []


def hangs(place: Place) -> list[Row]:
    threading.Event().wait()
    return []
