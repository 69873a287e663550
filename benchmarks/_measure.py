"""Alternating runs and their ratios: what stays true on a noisy machine."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a result table."""

    what: str
    measured: str
    reach: str
    met: bool | None  # None: nothing was promised
    note: str = ""


def alternate(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time every run in turn, round after round; return seconds by name."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(warmup + rounds):
        for name, run in runs.items():
            start = clock()
            run()
            if round_ >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def median_ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """Return the median over rounds of ours/peer, so that drift of the machine cancels."""
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def machine() -> str:
    """Name the hardware and the versions that a table was measured on."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            name = next(line.split(":")[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{name}, {torch.get_num_threads()} threads{gpu}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print a Markdown table, ready to be committed."""
    print(f"\n### {title}\n\n{machine()}\n")
    print("| what | measured | reach | | note |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        verdict = {True: "met", False: "NOT MET", None: ""}[row.met]
        print(f"| {row.what} | {row.measured} | {row.reach} | {verdict} | {row.note} |")
    print(flush=True)
