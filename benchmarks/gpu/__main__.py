"""`python -m benchmarks.gpu`: what only a GPU can settle, in at most 8 minutes and one table.

First it names the packages that are missing, and what cannot be done without them. Then the lines
run one after another; one that fails, hangs or kills its process ends no other. The table stands
in gpu.json and gpu.md, which are written after every line.

`--rehearse` runs every line on the CPU in small sizes: it proves the script, not a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks._measure import Row
from benchmarks.gpu import packages, report
from benchmarks.gpu.lines import LINES, Line, Place
from benchmarks.gpu.worker import Worker

_LEAST = 5  # seconds that must be left for a line to be begun


def main(argv: list[str] | None = None) -> int:
    """Return 0 if all lines that were run are as expected."""
    options = _options(argv)
    if options.fill:
        report.fill(options.fill)
        return 0
    started = time.monotonic()
    missing = packages.missing()
    about = _about(options.rehearse, missing)
    for key, said in about.items():
        print(f"{key}: {said}", flush=True)
    if not options.rehearse and about["device"] == "no GPU":
        print("no CUDA device is seen here; --rehearse runs all lines in small sizes on the CPU")
        return 2
    found = report.Report(options.out, about, options.rehearse)
    with tempfile.TemporaryDirectory() as folder:
        place = Place("cpu" if options.rehearse else "cuda", Path(folder), options.rehearse)
        worker = Worker(place)
        for line in LINES:
            if options.only and line.name not in options.only:
                continue
            begun = time.monotonic()
            left = 60 * options.minutes - (begun - started)
            rows, details = _run(line, worker, missing, left, options.rehearse)
            found.add(line, rows, time.monotonic() - begun, details)
            for row in rows:
                print(report.in_cells(row), flush=True)
        worker.close()
    print(f"{time.monotonic() - started:.0f} s; {options.out}/gpu.md and gpu.json")
    return 0 if found.all_met() else 1


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small sizes")
    parser.add_argument("--only", nargs="+", choices=[line.name for line in LINES])
    parser.add_argument("--minutes", type=float, default=8.0, help="that all of it may take")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the table")
    parser.add_argument(
        "--fill", type=Path, metavar="GPU.JSON", help="write a run's results into docs/gpu.md"
    )
    return parser.parse_args(argv)


def _run(
    line: Line, worker: Worker, missing: Mapping[str, str], left: float, rehearsal: bool
) -> tuple[list[Row], str]:
    lacking = [name for name in line.packages if name in missing]
    if lacking:
        why = f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing"
        return [Row(line.what, "not run", line.expected, None, why)], ""
    if left < _LEAST:
        return [Row(line.what, "not run", line.expected, None, "the minutes are over")], ""
    # A rehearsal has a CPU's speed: only the whole is limited.
    own = line.seconds + worker.start_seconds
    return worker.run(line, left if rehearsal else min(left, own))


def _about(rehearsal: bool, missing: Mapping[str, str]) -> dict[str, str]:
    """Return what people should know before the first line."""
    found = {
        "missing": "; ".join(f"{name} (for {why})" for name, why in missing.items()) or "nothing"
    }
    versions = {"python": platform.python_version(), **packages.versions()}
    found["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    found["device"] = "the CPU, in a rehearsal" if rehearsal else _device(missing)
    found["commit"] = _commit()
    found["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return found


def _device(missing: Mapping[str, str]) -> str:
    """Return the name of the GPU, asked in a process of its own: this one stays free of CUDA."""
    if "torch" in missing:
        return "no GPU"
    asked = (
        "import torch as t; c = t.cuda; p = c.is_available() and c.get_device_properties(0); "
        "print(f'{p.name}, {p.total_memory / 2**30:.0f} GiB, capability {p.major}.{p.minor}, "
        "CUDA {t.version.cuda}' if p else 'no GPU')"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    return done.stdout.strip() or f"no GPU: {done.stderr.strip().splitlines()[-1:]}"


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "log", "-1", "--format=%h"], cwd=report.ROOT, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
