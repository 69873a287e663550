"""A step, a checkpoint and a start of this tree against those of an earlier commit.

`python -m benchmarks.before_after COMMIT`: a process of each tree, taking turns; CPU seconds, which
other work on the machine leaves alone, and seconds with the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._measure import Row, median_ratio, print_table

ROOT = Path(__file__).resolve().parents[1]
STEPS, CHECKPOINTS = 100, 20
REACH = 1.05
# Runs in either tree: it uses nothing that one of them lacks. A line in is a turn, a line out its
# CPU seconds and seconds: {"start": [cpu, wall], "step": …, "checkpoint": …}.
WORKER = """
import json, shutil, sys, tempfile, time, warnings
warnings.simplefilter("ignore")
import lora_lab as ll
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task
lm, task = tiny_lm(), tiny_task()

def seconds(steps, save_steps):
    folder = tempfile.mkdtemp()
    began = time.process_time(), time.perf_counter()
    run = ll.train(
        lm, task, CONFIG, output_dir=folder, max_steps=steps, save_steps=save_steps, eval_examples=0
    )
    run.result(600)
    ended = time.process_time(), time.perf_counter()
    shutil.rmtree(folder)
    return [b - a for a, b in zip(began, ended)]

for _ in sys.stdin:
    start = seconds(1, 0)
    many = seconds(STEPS, 0)
    saved, plain = seconds(CHECKPOINTS, 1), seconds(CHECKPOINTS, 0)
    print(json.dumps({
        "start": start,
        "step": [(a - b) / (STEPS - 1) for a, b in zip(many, start)],
        "checkpoint": [(a - b) / (CHECKPOINTS - 1) for a, b in zip(saved, plain)],
    }), flush=True)
"""


@contextmanager
def worker(tree: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that works in a tree."""
    text = f"STEPS, CHECKPOINTS = {STEPS}, {CHECKPOINTS}\n{WORKER}"
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'widgets'}"}
    with subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=tree,
        env=environment,
        text=True,
        bufsize=1,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def turn(process: subprocess.Popen[str]) -> dict[str, list[float]]:
    """Have a worker take its turn; return what it measured."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    found: dict[str, list[float]] = json.loads(process.stdout.readline())
    return found


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="what this tree is held against")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        archive = subprocess.run(
            ["git", "archive", options.commit], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        before.mkdir()
        subprocess.run(["tar", "-x", "-C", before], input=archive.stdout, check=True)
        with worker(before) as old, worker(ROOT) as new:
            turn(old), turn(new)  # what is made once
            rounds = [(turn(old), turn(new)) for _ in range(options.rounds)]
    rows = []
    for what in ("step", "checkpoint", "start"):
        for place, clock in enumerate(("CPU", "clock")):
            was, now = ([each[side][what][place] for each in rounds] for side in (0, 1))
            ratio = median_ratio(now, was)
            note = " → ".join(f"{statistics.median(times) * 1e3:.2f} ms" for times in (was, now))
            reach = f"≤ {REACH}×" if place == 0 else ""
            met = ratio <= REACH if place == 0 else None
            rows.append(Row(f"a {what}, {clock}", f"{ratio:.3f}×", reach, met, note))
    print_table(f"This tree against {options.commit}", rows)


if __name__ == "__main__":
    main()
