"""`python -m benchmarks` (or `make bench`): every benchmark, each in a process of its own.

`--quick` (`make bench QUICK=1`) prints the same rows of fewer rounds, two benchmarks at a time with
a thread each: to see that all of it runs and where it stands, in minutes; not to be committed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

# What is said to each where it is to be quick; the long ones first, as two go side by side.
QUICK: dict[str, tuple[str, ...]] = {
    "adapters": ("--rounds", "1", "--layers", "6", "--loaded", "2", "20"),
    "whole_run": ("--rounds", "1", "--steps", "3", "--held-out", "8"),
    "kernel_answers": ("--cells", "10", "--pairs", "1", "--steps", "3"),
    "opening": ("--rounds", "1"),
    "evaluation": ("--steps", "2", "--prompts", "4"),
    "workbench_showing": ("--rounds", "1", "--seconds", "8", "--settle", "8"),
    "loss_peak": ("--steps", "1"),
    "loading": ("--rounds", "1"),
    "many": ("--rounds", "1"),
    "training_loop": ("--rounds", "1"),
    "latency": ("--rounds", "1", "--blocks", "2", "--batch", "4"),
    "dry_run": (),
    "prefix": ("--rounds", "1", "--blocks", "6"),
    "spectra": (),
    "reading": ("--rounds", "1"),
    "adalora": ("--rounds", "1", "--layers", "6"),
    "closed_form": (),
    "step_slider": ("--moves", "100"),
}


def main(argv: list[str] | None = None) -> int:
    """Run all; return 1 if one of them failed, which stops none of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, two side by side")
    quick = parser.parse_args(argv).quick
    failed, began = [], time.perf_counter()
    for name, code, seconds in side_by_side() if quick else in_turn():
        print(f"{name}: {seconds:.0f} s", flush=True)
        failed += [name] * bool(code)
    print(f"all: {(time.perf_counter() - began) / 60:.1f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def in_turn() -> Iterator[tuple[str, int, float]]:
    """Run one after the other; yield each one's name, exit status and seconds."""
    for name in QUICK:
        began = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        yield name, code, time.perf_counter() - began


def side_by_side() -> Iterator[tuple[str, int, float]]:
    """Run two at a time, each with a thread; print each one's output whole, when it is there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(name: str) -> tuple[str, subprocess.CompletedProcess[str], float]:
        began = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *QUICK[name]],
            check=False,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        return name, ended, time.perf_counter() - began

    with ThreadPoolExecutor(2) as pool:
        for name, ended, seconds in pool.map(run, QUICK):
            print(ended.stdout, end="")
            yield name, ended.returncode, seconds


if __name__ == "__main__":
    sys.exit(main())
