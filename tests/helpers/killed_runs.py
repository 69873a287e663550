"""Runs that are killed and gone on with, each in a forked process: `python killed_runs.py FOLDER`.

This process imports everything once and never trains, so that a fork is safe and cheap. It prints
one JSON object: the run left alone, and for every seed what the killed and resumed run came to.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lora_lab._util import files
from lora_lab.configs import LoraConfig
from lora_lab.runs.records import list_runs
from lora_lab.training.api import train
from lora_lab.training.resume import resume
from tests.helpers.tiny_run import tiny_lm, tiny_task

SEEDS = range(20)
STEPS, SAVE_STEPS = 24, 5
CONFIG = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules=["q", "v", "down"])


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return digest.hexdigest()


def outcome(run: Any) -> dict[str, Any]:
    result = run.result(120)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "losses": result.losses,
        "logged": [(row["step"], row["loss"]) for row in rows],
        "adapter": digest_of(run.adapter.state()),
        "metrics": result.metrics,
        "saved": digest_of(load_file(result.adapter_folder / "adapter_model.safetensors")),
        "leftovers": [p.name for p in run.folder.rglob(".*")],
    }


def begin(folder: Path) -> Any:
    return train(
        tiny_lm(),
        tiny_task(),
        CONFIG,
        output_dir=folder,
        max_steps=STEPS,
        save_steps=SAVE_STEPS,
        learning_rate=1e-2,
        eval_examples=2,
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def killed_at_some_moment(folder: Path, rng: random.Random) -> None:
    """Die some milliseconds after a step, wherever the run's thread is then."""
    from lora_lab.runs.store import RunStore

    at, seconds, log = rng.randint(1, STEPS // 2), rng.uniform(0, 0.02), RunStore.log

    def doomed(self: RunStore, row: Any) -> None:
        log(self, row)
        if row["step"] == at:
            threading.Timer(seconds, die).start()

    RunStore.log = doomed  # type: ignore[method-assign]
    begin(folder).wait(60)


def killed_in_a_step(folder: Path, rng: random.Random) -> None:
    """Die between a step and its line, or between its line and the next step."""
    from lora_lab.runs.store import RunStore

    at, before, log = rng.randint(1, STEPS), rng.random() < 0.5, RunStore.log

    def deadly(self: RunStore, row: Any) -> None:
        if row["step"] == at and before:
            die()
        log(self, row)
        if row["step"] == at:
            die()

    RunStore.log = deadly  # type: ignore[method-assign]
    begin(folder).wait(60)


def killed_in_a_checkpoint(folder: Path, rng: random.Random) -> None:
    """Die at one of the flushes of one of the checkpoints: before, within or after its rename."""
    at, sync, calls = rng.randint(1, 28), files.sync, iter(range(1, 10_000))

    def deadly(path: Path) -> None:
        if "checkpoints" in path.parts and next(calls) == at:
            die()
        sync(path)

    files.sync = deadly
    begin(folder).wait(60)
    die()


def killed_in_torch_save(folder: Path, rng: random.Random) -> None:
    """Die with half of a state.pt written."""
    at, save, calls = rng.randint(1, 4), torch.save, iter(range(1, 100))

    def deadly(value: Any, path: Path) -> None:
        save(value, path)
        if "checkpoints" in path.parts and next(calls) == at:
            os.truncate(path, path.stat().st_size // 2)
            die()

    torch.save = deadly
    begin(folder).wait(60)


KINDS = (killed_at_some_moment, killed_in_a_step, killed_in_a_checkpoint, killed_in_torch_save)


def in_a_fork(work: Callable[[], Any], answer: Path | None = None) -> int:
    """Do work in a child; return the signal that ended it, 0 where none did."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            value = work()
            if answer is not None:
                answer.write_text(json.dumps(value))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a child failed; see its traceback above")
    return os.WTERMSIG(status)


def gone_on(folder: Path) -> dict[str, Any]:
    (record,) = list_runs(folder)
    state = str(record.state)
    run = resume(record, tiny_lm(), tiny_task())
    before = run.steps_before[-1][0] if run.steps_before else 0
    return {**outcome(run), "state": state, "from": before}


def main(folder: Path) -> None:
    assert threading.active_count() == 1
    torch.set_num_threads(1)
    gc.freeze()  # a child that collects garbage must not copy every page of this process
    answer = folder / "answer.json"
    in_a_fork(lambda: outcome(begin(folder / "alone")), answer)
    found: dict[str, Any] = {"alone": json.loads(answer.read_text()), "killed": []}
    for seed in SEEDS:
        rng = random.Random(seed)
        kind, place = KINDS[seed % len(KINDS)], folder / f"seed-{seed}"
        end = in_a_fork(lambda kind=kind, place=place, rng=rng: kind(place, rng))
        in_a_fork(lambda place=place: gone_on(place), answer)
        resumed = json.loads(answer.read_text())
        found["killed"].append({"seed": seed, "kind": kind.__name__, "signal": end, **resumed})
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
