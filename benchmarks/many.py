"""5,000 runs in a folder, and a run of a million steps: seconds to list and to show them.

`python -m benchmarks.many`, a minute and 200 MB on the disk: seconds on the clock, beside the
standard library's reading of the same files, and the longest time for which no other thread of the
kernel came by, in one that has torch, transformers and the workbench.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_lab as ll
from benchmarks._measure import Row, alternate, median_ratio, print_table
from lora_lab.runs.records import list_runs
from lora_lab_widgets.run_rows import look
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

RUNS, STEPS, ROUNDS = 5_000, 1_000_000, 5
LIST_S, OPEN_S, STALL_S = 1.0, 2.0, 0.1
_TICK = 0.001


def recorded() -> tuple[str, str]:
    """Return config.json and summary.json of a run."""
    with tempfile.TemporaryDirectory() as folder:
        run = ll.train(
            tiny_lm(), tiny_task(), CONFIG, output_dir=folder, max_steps=1, eval_examples=2
        )
        run.result(60)
        return (run.folder / "config.json").read_text(), (run.folder / "summary.json").read_text()


def make(parent: Path, name: str, texts: tuple[str, str], steps: int) -> None:
    """Write the folder of a run."""
    folder = parent / name
    folder.mkdir(parents=True)
    for file, text in zip(("config.json", "summary.json"), texts, strict=True):
        (folder / file).write_text(text)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": 2 + step * 7919 % 99991 / 1e5, "learning_rate": 1e-3}
            file.write(json.dumps(row | {"tokens": 1024, "seconds": step * 0.0123456}) + "\n")


def longest_stall(work: Callable[[], object]) -> float:
    """Return for how many seconds at most another thread did not come by during some work."""
    stop, gaps = threading.Event(), [0.0]

    def tick() -> None:
        last = time.perf_counter()
        while not stop.wait(_TICK):
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    work()
    stop.set()
    thread.join()
    return max(gaps)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args(given).rounds
    rows = []
    with tempfile.TemporaryDirectory() as place:
        many, long = Path(place) / "many", Path(place) / "long"
        texts = recorded()
        for number in range(RUNS):
            make(many, f"20300101-{number:06d}-{number:04x}", texts, 1)
        make(long, "20300101-000000-aaaa", texts, STEPS)

        def read(folder: Path, name: str) -> list[Any]:
            return [json.loads(each.read_bytes()) for each in folder.glob(f"*/{name}")]

        def lines() -> list[Any]:
            (path,) = long.glob("*/metrics.jsonl")
            return [json.loads(line) for line in path.read_bytes().splitlines()]

        def show() -> None:
            records = list_runs(long)
            assert look(records, [records[0].id], records[0].id).details["points"]

        for what, ours, peer, reach, times in (
            (
                f"{RUNS:,} runs, listed",
                lambda: look(list_runs(many), (), ""),
                lambda: read(many, "config.json") + read(many, "summary.json"),
                LIST_S,
                rounds,
            ),
            (
                f"a run of {STEPS:,} steps, opened, compared and drawn",
                show,
                lines,
                OPEN_S,
                min(rounds, 3),
            ),
        ):
            seconds = alternate({"ours": ours, "peer": peer}, times)
            median = statistics.median(seconds["ours"])
            ratio = median_ratio(seconds["ours"], seconds["peer"])
            note = f"{ratio:.2f}× json.loads of the same files"
            rows.append(Row(what, f"{median:.2f} s", f"< {reach:g} s", median < reach, note))
            stalls = [longest_stall(ours) for _ in range(times)]
            stall, most = statistics.median(stalls), max(stalls)
            note = f"median; {most * 1e3:.0f} ms at most of {times} times"
            reached = f"≤ {STALL_S * 1e3:.0f} ms"
            rows.append(
                Row("no other thread for", f"{stall * 1e3:.0f} ms", reached, stall <= STALL_S, note)
            )
    print_table("Many runs, and a long one", rows)


if __name__ == "__main__":
    main()
