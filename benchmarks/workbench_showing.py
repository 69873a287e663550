"""Training with the workbench showing in a browser against the same run with nobody looking.

A real JupyterLab and a real Chromium on the same machine: what the browser takes to draw counts
too. One run; the workbench is hidden for every other stretch of it, and then asks nothing. Steps
are told apart by their own stamps; as they vary with the machine's other load, the table also has
the cores' time that browser and server took, which does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._measure import Row, print_table

REACH = 1.03
BENCH = """\
from lora_lab_widgets import Workbench
wb = Workbench("smollm2-135m", max_steps=100_000, per_device_train_batch_size=4,
               eval_examples=0, save_steps=0)
wb"""
START = "str(wb.start().folder.resolve())"
STOP = "wb.run.stop(); wb.run.wait()"
HIDE = "shown => document.querySelector('.ll-workbench').style.display = shown ? '' : 'none'"
SETTLES = 4_000  # milliseconds until a change of sight has come through


@dataclass(frozen=True)
class Stretch:
    """One stretch of the run."""

    step: float  # seconds a step
    page: float  # cores that browser and server took


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15, help="of a stretch")
    parser.add_argument("--settle", type=int, default=20, help="seconds before the first")
    args = parser.parse_args(argv)
    try:
        import psutil
        from playwright.sync_api import sync_playwright

        from tests.browser.chromium import LAUNCH_ARGS, MISSING, find
        from tests.browser.lab import JupyterLab
    except ImportError as error:
        sys.exit(f"this benchmark drives JupyterLab; install the extra `test` ({error})")

    own = psutil.Process()
    stretches: dict[bool, list[Stretch]] = {True: [], False: []}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        path = find(playwright.chromium.executable_path)
        if path is None:
            sys.exit(MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_ARGS))
        with JupyterLab(Path(scratch)) as lab:
            page = browser.new_page(viewport={"width": 1400, "height": 1300})
            notebook = lab.open(page, [BENCH, START, STOP])
            notebook.run(0, seconds=300)
            notebook.run(1)
            stamps = Path(notebook.output(1).strip("'")) / "metrics.jsonl"
            page.wait_for_timeout(args.settle * 1000)  # figures are made, the step has its pace
            for _ in range(args.rounds):
                for shown in (True, False):
                    page.evaluate(HIDE, shown)
                    page.wait_for_timeout(SETTLES)
                    first, before = len(_seconds(stamps)), _page_seconds(own)
                    page.wait_for_timeout(args.seconds * 1000)
                    at, after = _seconds(stamps), _page_seconds(own)
                    step = (at[-1] - at[first - 1]) / (len(at) - first)
                    stretches[shown].append(Stretch(step, (after - before) / args.seconds))
            notebook.run(2)
        browser.close()
    print_table(
        "SmolLM2-135M, q and v at r=8, batch 4, a browser on the same cores",
        rows(stretches[True], stretches[False], os.cpu_count() or 1),
    )


def rows(shown: list[Stretch], hidden: list[Stretch], cores: int) -> list[Row]:
    """Return the table of a run's stretches, which alternated."""
    steps = [a.step / b.step for a, b in zip(shown, hidden, strict=True)]
    pages = [(a.page - b.page) / cores for a, b in zip(shown, hidden, strict=True)]
    ratio, share = statistics.median(steps), statistics.median(pages)
    return [
        Row(
            "seconds a step, workbench showing against hidden",
            f"{ratio:.3f}×",
            f"≤ {REACH}×",
            ratio <= REACH,
            f"median of {len(steps)} pairs, {min(steps):.3f} to {max(steps):.3f}",
        ),
        Row(
            f"the {cores} cores' time that browser and server take more while it shows",
            f"{share:.1%}",
            f"≤ {REACH - 1:.0%}",
            share <= REACH - 1,
            f"median, {min(pages):.1%} to {max(pages):.1%}; drawn in software, without a GPU",
        ),
    ]


def _seconds(stamps: Path) -> list[float]:
    """Return when each step ended, in seconds of the run; a line half written does not count."""
    lines = stamps.read_text(encoding="utf-8").split("\n")[:-1]
    return [float(json.loads(line)["seconds"]) for line in lines]


def _page_seconds(own: Any) -> float:
    """Return the processor seconds of all that is not the kernel: browser, server, Playwright."""
    import psutil

    total = 0.0
    for process in own.children(recursive=True):
        try:
            if "ipykernel" not in " ".join(process.cmdline()):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.Error:  # it has ended
            continue
    return total


if __name__ == "__main__":
    main()
