"""Pauses one of two processes for longer than the other would wait; see `test_processes.py`.

RANK=0 WORLD_SIZE=2 … python paused_processes.py FOLDER
"""

from __future__ import annotations

import json
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from lora_lab._util.python_private import end_without_finalizing
from lora_lab.training import processes
from lora_lab.training.run import Run
from lora_lab.training.snapshot import RunState
from tests.helpers.several_processes import begin
from tests.helpers.tiny_run import until

PATIENCE = 3.0  # seconds


def paused_by(rank: int, run: Run) -> dict[str, Any]:
    """Have one rank rest at the start of its training, longer than the other would wait for it."""
    if processes.rank() != rank:
        run.start().result(120)
        return {"losses": run.losses}
    seen: dict[str, Any] = {}

    def rest() -> None:
        until(lambda: run.state is RunState.PAUSED)
        step, start = run.snapshot.step, time.monotonic()
        time.sleep(2.2 * PATIENCE)
        seen["state while paused"] = str(run.state)
        seen["steps while paused"] = run.snapshot.step - step
        seen["paused for"] = time.monotonic() - start
        run.resume()

    resting = at_step(run, 3, run.pause)
    steering = threading.Thread(target=rest)
    steering.start()
    resting.start().result(120)
    steering.join()
    return {"losses": run.losses, **seen}


def at_step(run: Run, step: int, act: Any) -> Run:
    """Have a run act on itself after a step."""
    publish = run.publish

    def look(**changes: Any) -> None:
        publish(**changes)
        if changes.get("step") == step:
            act()

    run.publish = look  # type: ignore[method-assign]
    return run


def stopped_by_the_other(run: Run) -> str:
    """Rank 0 pauses and never goes on; rank 1 stops."""
    at_step(run, 3, run.pause if processes.main() else run.stop)
    run.start().wait(120)
    return str(run.state)


def shorten_patience() -> None:
    """Have the processes wait for each other no longer than PATIENCE, from now on."""
    processes._PATIENCE = timedelta(seconds=PATIENCE)
    distributed.distributed_c10d._set_pg_timeout(processes._PATIENCE)


def main(folder: Path) -> None:
    """Write found.json."""
    with processes.joined():
        begin(folder / "warm", batch=4, max_steps=1).start().result(120)  # imports take their time
        shorten_patience()
        mine = [paused_by(rank, begin(folder / f"paused {rank}", batch=4)) for rank in (0, 1)]
        told: list[Any] = [None, None]
        distributed.all_gather_object(told, mine)
        found = {
            "patience": PATIENCE,
            "the first": told[0][0],
            "the second": told[1][1],
            "stopped by the other": stopped_by_the_other(begin(folder / "stopped", batch=4)),
        }
        if processes.main():
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    end_without_finalizing(0)
