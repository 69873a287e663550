"""Processes that call one sweep together, each a fork: `python shared_sweeps.py FOLDER`.

It prints one JSON object: what each process saw, by scenario.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_lab.sweeps.api import sweep
from lora_lab.sweeps.local import Sweep
from tests.helpers.killed_runs import in_a_fork
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

STEPS = 12


def call(folder: Path, ranks: Sequence[int] = (1, 2, 3, 4), **more: Any) -> Sweep:
    settings = {"max_steps": STEPS, "save_steps": 2, "eval_examples": 0, "warmup_steps": 0}
    return sweep(tiny_lm(), tiny_task(), grid={"r": ranks}, output_dir=folder, **settings, **more)


def seen(found: Sweep) -> dict[str, Any]:
    ended = found.results(120)
    return {"state": found.snapshot.state, "cells": {k: r.state for k, r in ended.items()}}


def all_call(folder: Path) -> dict[str, Any]:
    return seen(call(folder))


def other_cells(folder: Path) -> dict[str, Any]:
    """A process whose ranks are others than the next one's, but for one."""
    first = len(list(folder.glob("begun-*"))) % 2
    (folder / f"begun-{os.getpid()}").touch()
    return seen(call(folder, (1, 2) if first else (2, 3)))


def one_dies(folder: Path) -> dict[str, Any]:
    """The first that has a checkpoint dies; the other one goes on with its cell."""
    found = call(folder)
    until(lambda: found.snapshot.run is not None and found.snapshot.run.snapshot.step >= 5)
    try:
        os.mkdir(folder / "dead")
    except FileExistsError:
        return seen(found)
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return {}


def one_cell_fails(folder: Path) -> dict[str, Any]:
    """A cell that fails in one process is not tried once more by the other in the same call."""
    from lora_lab.runs.store import RunStore

    log = RunStore.log

    def fails(self: RunStore, row: Any) -> None:
        if json.loads((self.folder / "config.json").read_text())["lora"]["r"] == 2:
            raise OSError("the disk is gone")
        log(self, row)

    RunStore.log = fails  # type: ignore[method-assign]
    return seen(call(folder))


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "all call": all_call,
    "other cells": other_cells,
    "one dies": one_dies,
    "one cell fails": one_cell_fails,
}


def together(folder: Path, work: Callable[[Path], dict[str, Any]], processes: int = 2) -> list[Any]:
    """Return what each process came to; None of one that was killed."""
    children = []
    for number in range(processes):
        answer = folder / f"answer-{number}.json"
        child = os.fork()
        if child == 0:
            end = in_a_fork(lambda: work(folder), answer)
            os._exit(end)
        children.append((child, answer))
    for child, _ in children:
        os.waitpid(child, 0)
    return [json.loads(a.read_text()) if a.exists() else None for _, a in children]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    found = {}
    for name, work in SCENARIOS.items():
        place = folder / name
        place.mkdir()
        found[name] = together(place, work)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
