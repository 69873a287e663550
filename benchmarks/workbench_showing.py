"""Training with the workbench showing in a browser against the same run with nobody looking.

A real JupyterLab and a real Chromium on the same machine: what the browser takes to draw counts
too. Runs alternate in one kernel; the workbench is hidden for every other one, and then asks
nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks._measure import Row, print_table

REACH = 1.03
CELL = """\
from lora_lab_widgets import Workbench
wb = Workbench("smollm2-135m", max_steps={steps}, per_device_train_batch_size=4,
               eval_examples=0, save_steps=0)
wb"""
TRAIN = "wb.start().result().seconds"
HIDE = "shown => document.querySelector('.ll-workbench').style.display = shown ? '' : 'none'"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args(argv)
    try:
        from playwright.sync_api import sync_playwright

        from tests.browser.chromium import LAUNCH_ARGS, MISSING, find
        from tests.browser.lab import JupyterLab
    except ImportError as error:
        sys.exit(f"this benchmark drives JupyterLab; install the extra `test` ({error})")

    seconds: dict[bool, list[float]] = {True: [], False: []}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        path = find(playwright.chromium.executable_path)
        if path is None:
            sys.exit(MISSING)
        browser = playwright.chromium.launch(executable_path=path, args=list(LAUNCH_ARGS))
        with JupyterLab(Path(scratch)) as lab:
            page = browser.new_page(viewport={"width": 1400, "height": 1300})
            notebook = lab.open(page, [CELL.format(steps=args.steps), TRAIN])
            notebook.run(0, seconds=300)
            for round_ in range(args.rounds + 1):  # the first is a warm-up
                for shown in (True, False):
                    page.evaluate(HIDE, shown)
                    page.wait_for_timeout(1_500)
                    notebook.run(1, seconds=600)
                    if round_:
                        seconds[shown].append(float(notebook.output(1)))
        browser.close()
    spread = [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    ratio = statistics.median(spread)
    print_table(
        f"SmolLM2-135M, q and v at r=8, {args.steps} steps of 4 examples",
        [
            Row(
                "trained time, workbench showing against hidden",
                f"{ratio:.3f}×",
                f"≤ {REACH}×",
                ratio <= REACH,
                f"median of {args.rounds} pairs, {min(spread):.3f} to {max(spread):.3f}",
            )
        ],
    )


if __name__ == "__main__":
    main()
