"""Processes that train together, of which one dies: `python lost_processes.py FOLDER`.

All are forks of this one, which imports everything once. It prints one JSON object: what each
survivor says, by scenario.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lora_lab.errors import RunError
from lora_lab.training import processes
from lora_lab.training.run import Run
from tests.helpers.killed_runs import in_a_fork
from tests.helpers.several_processes import begin
from tests.helpers.tiny_run import until

STEPS, SAVE_STEPS, DIES_AT = 12, 3, 8
SCENARIOS = {  # how many there are, which one dies, and when
    "the second dies": (2, 1, "in a step"),
    "the first dies": (2, 0, "in a step"),
    "one of three dies": (3, 2, "in a step"),
    "one dies before the start": (2, 1, "before the start"),
    "one dies in the first evaluation": (2, 1, "in the first evaluation"),
}


def begun(folder: Path, batch: int) -> Run:
    return begin(folder, batch=batch, max_steps=STEPS, save_steps=SAVE_STEPS, eval_examples=2)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def doomed(run: Run, when: str) -> None:
    """Have this process die when its run is there."""
    publish = run.publish

    def look(**changes: Any) -> None:
        evaluates = "evaluating" in str(changes.get("phase"))
        if changes.get("step") == DIES_AT or (evaluates and when == "in the first evaluation"):
            die()
        publish(**changes)

    if when == "before the start":
        die()
    run.publish = look  # type: ignore[method-assign]


def trains(folder: Path, rank: int, count: int, who: int, when: str) -> None:
    """Write what one of them says; it stays until all survivors have said something."""
    run = begun(folder / "runs", 12 // count)
    if rank == who:
        doomed(run, when)
    try:
        run.start()
        said = run.outcome() if run.wait(60) else "still waiting"
    except RunError as error:
        said = str(error)
    answer = {"said": said, "folder": str(run.folder), "count": processes.count()}
    (folder / f"answer-{rank}.json").write_text(json.dumps(answer))
    until(lambda: len(list(folder.glob("answer-*"))) == count - 1)


def together(folder: Path, count: int, work: Callable[[int], None]) -> list[Any]:
    """Return what each process answered; None of one that died."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    meeting = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update(meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)})

            def joins(rank: int = rank) -> None:
                with processes.joined():
                    work(rank)

            os._exit(in_a_fork(joins))
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    answers = [folder / f"answer-{rank}.json" for rank in range(count)]
    return [json.loads(path.read_text()) if path.exists() else None for path in answers]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gc.freeze()
    found = {}
    for name, (count, who, when) in SCENARIOS.items():
        place = folder / name
        place.mkdir()
        found[name] = together(
            place, count, lambda rank, p=place, n=count, w=who, t=when: trains(p, rank, n, w, t)
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
