"""CPU seconds for 300,000 rows as text and as a task, beside the standard library's parsers."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks._measure import Row, alternate, median_ratio, print_table
from lora_lab.tasks import load_task
from lora_lab.tasks.formats.json_rows import read_json
from lora_lab.tasks.formats.separated import read_separated

Pairs = dict[str, tuple[Callable[[], object], Callable[[], object]]]

ROWS, ROUNDS, REACH_S = 300_000, 3, 2.0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args(argv).rounds
    rows = [(f"question {i}, with a comma", f'answer {i}, some say "words"') for i in range(ROWS)]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("prompt", "completion"), *rows])
    quoted = buffer.getvalue()
    lines = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows)
    pairs: Pairs = {
        "CSV, every field in quotes": (
            lambda: read_separated(quoted, "x", ".csv", (), None),
            lambda: list(csv.reader(io.StringIO(quoted, newline=""))),
        ),
        "JSON lines": (
            lambda: read_json(lines, "x", ".jsonl"),
            lambda: [json.loads(line) for line in lines.splitlines()],
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        for suffix, text in ((".csv", quoted), (".jsonl", lines)):
            path = Path(folder, f"rows{suffix}")
            path.write_text(text, encoding="utf-8", newline="")
            _, peer = pairs["JSON lines" if suffix == ".jsonl" else "CSV, every field in quotes"]
            pairs[f"load_task of the {suffix}"] = functools.partial(load_task, path), peer
        _measure(pairs, rounds)


def _measure(pairs: Pairs, rounds: int) -> None:
    table = []
    for name, (ours, peer) in pairs.items():
        seconds = alternate({"ours": ours, "peer": peer}, rounds, clock=time.process_time)
        median = statistics.median(seconds["ours"])
        note = f"{median_ratio(seconds['ours'], seconds['peer']):.1f}× the standard library"
        reach = f"≤ {REACH_S:.0f} s"
        table.append(Row(name, f"{median:.2f} s", reach, median <= REACH_S, note))
    print_table(f"{ROWS:,} rows of text", table)


if __name__ == "__main__":
    main()
