"""tests/gpu, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys

from benchmarks._measure import Row
from benchmarks.gpu.lines import Place
from benchmarks.gpu.report import ROOT

SECONDS = 140


def gpu_tests(place: Place) -> list[Row]:
    """Run them; in a rehearsal they are only collected, since each skips without a GPU."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-rfEs", "--tb=short"]
    command += ["-p", "no:cacheprovider", *(["--collect-only"] if place.small else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    found = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", lines[-1])}
    if place.small:
        return [
            Row("tests/gpu", lines[-1], "are collected", None if done.returncode == 0 else False)
        ]
    told = [line for line in lines if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    good = done.returncode == 0 and bool(found.get("passed")) and not found.get("skipped")
    return [Row("tests/gpu", lines[-1].strip("= "), "all pass", good, "; ".join(told)[:600])]
