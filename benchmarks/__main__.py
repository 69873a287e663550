"""`python -m benchmarks` (or `make bench`): every benchmark, each in a process of its own.

`--quick` (`make bench QUICK=1`) prints the same rows of fewer rounds: to see that all of it runs
and where it stands, in minutes; not to be committed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

# What is said to each where it is to be quick.
QUICK: dict[str, tuple[str, ...]] = {
    "adapters": ("--rounds", "1", "--layers", "6"),
    "whole_run": ("--rounds", "1", "--steps", "4", "--held-out", "16"),
    "loss_peak": ("--steps", "2"),
    "evaluation": ("--steps", "2"),
    "loading": ("--rounds", "1"),
    "opening": ("--rounds", "1"),
    "latency": ("--rounds", "1", "--blocks", "2"),
    "prefix": ("--rounds", "1", "--blocks", "6"),
    "adalora": ("--rounds", "1", "--layers", "6"),
    "spectra": (),
    "closed_form": (),
    "dry_run": (),
    "step_slider": ("--moves", "100"),
    "training_loop": ("--rounds", "1"),
    "workbench_showing": ("--rounds", "1", "--seconds", "10"),
    "kernel_answers": ("--cells", "20", "--pairs", "1"),
    "reading": (),
    "many": ("--rounds", "1"),
}


def main(argv: list[str] | None = None) -> int:
    """Run all; return 1 if one of them failed, which stops none of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds of the same rows")
    quick = parser.parse_args(argv).quick
    failed, began = [], time.perf_counter()
    for name, fewer in QUICK.items():
        start = time.perf_counter()
        command = [sys.executable, "-m", f"benchmarks.{name}", *(fewer if quick else ())]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"all: {(time.perf_counter() - began) / 60:.1f} minutes")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
