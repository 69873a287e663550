"""Runs that are killed and gone on with, each in forked processes: `python killed_runs.py FOLDER`.

This process imports everything once and never trains, so that a fork is safe and cheap. It prints
one JSON object: of every method the run left alone, and of every seed what its killed and resumed
run came to. `benchmarks.kills` does so hundreds of times.
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
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixEmbedConfig,
    PrefixLayerConfig,
)
from lora_lab.runs.records import RecordState, RunRecord, list_runs
from lora_lab.training.api import train
from lora_lab.training.resume import resume
from tests.helpers.tiny_run import tiny_lm, tiny_task

STEPS, SAVE_STEPS = 16, 3
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.2, target_modules=["q", "v", "down"])
EMBED, LAYER = PrefixEmbedConfig(3, 2), PrefixLayerConfig(2, 1)
BIASES = BitFitConfig(new_biases=True)
METHODS: dict[str, Any] = {
    "LoRA": LORA,
    "LoRA, DoRA": LORA.replace(use_dora=True),
    "LoRA, PiSSA": LORA.replace(init_lora_weights="pissa"),
    "AdaLoRA": AdaLoraConfig(target_r=2, init_r=3, tinit=2, tfinal=4, deltaT=2),
    "IA3": IA3Config(),
    "OFT": OFTConfig(oft_block_size=4, target_modules=["o", "down"]),
    "Adapter^H": BottleneckConfig("H", r=3),
    "Adapter^L": BottleneckConfig("L", r=3),
    "Adapter^P": BottleneckConfig("P", r=3),
    "Adapter^D": BottleneckConfig("D", r=3, drop_layers=1),
    "PreEmbed": EMBED,
    "PreLayer": LAYER,
    "LoRA+PE": [LORA, EMBED],
    "LoRA+PL": [LORA, LAYER],
    "BitFit": BIASES,
    "LoRA+BitFit+Adapter^P": [LORA, BIASES, BottleneckConfig("P", r=3)],
    "FT": FullConfig(),
    "FT-Top1": FullConfig(top_layers=1),
}
SEEDS = range(12)  # of the small share that the tests take, two of each of these methods
SHARE = ("LoRA", "AdaLoRA", "Adapter^D", "PreLayer", "FT", "LoRA+BitFit+Adapter^P")


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().numpy().tobytes())
    return digest.hexdigest()


def on_disk(folder: Path) -> dict[str, Any]:
    """What a run that is over has left: its log, its weights, and what should not be there."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = sorted((folder / "adapter").rglob("*.safetensors"))
    return {
        "logged": [[row["step"], row["loss"]] for row in rows],
        "saved": [digest_of(load_file(path)) for path in weights],
        "leftovers": [p.name for p in folder.rglob(".*")],
    }


def outcome(run: Any) -> dict[str, Any]:
    result = run.result(300)
    return {
        "losses": result.losses,
        "adapter": digest_of(run.adapter.state()),
        "metrics": result.metrics,
        **on_disk(run.folder),
    }


def begin(folder: Path, method: str) -> Any:
    run = train(
        tiny_lm(),
        tiny_task(),
        METHODS[method],
        output_dir=folder,
        max_steps=STEPS,
        save_steps=SAVE_STEPS,
        learning_rate=1e-2,
        eval_examples=1,
        max_length=64,
    )
    (folder / "started").touch()  # from here on the run is on the disk
    return run


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


Begin = Callable[[], Any]


def killed_at_any_moment(begin: Begin, rng: random.Random) -> None:
    """Die some milliseconds after the beginning, wherever each thread is then."""
    threading.Thread(target=_die_after, args=(rng.uniform(0, 1.2) * _seconds,), daemon=True).start()
    begin().wait(300)


def killed_after_a_step(begin: Begin, rng: random.Random) -> None:
    """Die some milliseconds after a step, wherever the run's thread is then."""
    from lora_lab.runs.store import RunStore

    at, seconds, log = rng.randint(1, STEPS // 2), rng.uniform(0, 0.02), RunStore.log

    def doomed(self: RunStore, row: Any) -> None:
        log(self, row)
        if row["step"] == at:
            threading.Timer(seconds, die).start()

    RunStore.log = doomed  # type: ignore[method-assign]
    begin().wait(300)


def killed_in_a_step(begin: Begin, rng: random.Random) -> None:
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
    begin().wait(300)


def killed_in_a_flush(begin: Begin, rng: random.Random) -> None:
    """Die at a flush, the start's or a checkpoint's: before, within or after a rename."""
    at, sync, calls = rng.randint(1, 40), files.sync, iter(range(1, 10_000))

    def deadly(path: Path) -> None:
        if next(calls) == at:
            die()
        sync(path)

    files.sync = deadly
    begin().wait(300)


def killed_in_torch_save(begin: Begin, rng: random.Random) -> None:
    """Die with half of a state.pt written."""
    at, save, calls = rng.randint(1, STEPS // SAVE_STEPS), torch.save, iter(range(1, 100))

    def deadly(value: Any, path: Path) -> None:
        save(value, path)
        if "checkpoints" in path.parts and next(calls) == at:
            os.truncate(path, path.stat().st_size // 2)
            die()

    torch.save = deadly
    begin().wait(300)


KINDS = (
    killed_at_any_moment,
    killed_after_a_step,
    killed_in_a_step,
    killed_in_a_flush,
    killed_in_torch_save,
)
_seconds = 1.0  # that the first run left alone took; `alone` measures it


def _die_after(seconds: float) -> None:
    time.sleep(seconds)
    die()


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


def alone(folder: Path, method: str) -> dict[str, Any]:
    """Return what a run of a method comes to if nobody kills it."""
    global _seconds
    answer, begun = folder / "answer.json", time.monotonic()
    in_a_fork(lambda: outcome(begin(folder, method)), answer)
    _seconds = time.monotonic() - begun
    return json.loads(answer.read_text())


def killed(folder: Path, seed: int, method: str) -> dict[str, Any]:
    """Kill a run, and now and then its resumption too, and go on with it to the end.

    One that dies before `train` has returned may have left nothing: then it is begun anew.
    """
    rng, answer = random.Random(seed), folder / "answer.json"
    folder.mkdir(parents=True)
    kinds = [KINDS[seed % len(KINDS)], *rng.choices(KINDS, k=rng.choice((0, 0, 1, 2)))]
    stood: list[tuple[str, int]] = []
    signals = []

    def on() -> Any:
        if (record := _resumable(folder)) is None:
            return begin(folder, method)
        return resume(record, tiny_lm(), tiny_task())

    for kind in kinds:
        signals.append(in_a_fork(lambda kind=kind: kind(on, rng)))
        stood.append(how_it_stands(folder))
        if stood[-1][0] == "done":
            break
    over = stood[-1][0] == "done"
    last = _resumable(folder)
    in_a_fork(lambda: on_disk(last.folder) if over and last else outcome(on()), answer)
    return {
        **json.loads(answer.read_text()),
        "method": method,
        "kinds": [kind.__name__ for kind in kinds[: len(signals)]],
        "signals": signals,
        "stood": stood,
    }


def _resumable(folder: Path) -> RunRecord | None:
    records = [each for each in list_runs(folder) if each.state is not RecordState.DAMAGED]
    assert len(records) < 2, "a run that could go on was begun anew"
    return records[0] if records else None


def how_it_stands(folder: Path) -> tuple[str, int]:
    """Return a run's state, and the step of its newest checkpoint, as anybody sees them."""
    record = _resumable(folder)
    if record is None:
        assert not (folder / "started").exists(), "a run whose start had returned is gone"
        return "absent", 0
    return str(record.state), max(record.open().checkpoints, default=0)


def main(folder: Path) -> None:
    assert threading.active_count() == 1
    prepare()
    found = {name: alone(folder / f"alone-{name}", name) for name in SHARE}
    cases = [killed(folder / f"seed-{seed}", seed, SHARE[seed % len(SHARE)]) for seed in SEEDS]
    print(json.dumps({"alone": found, "killed": cases}))


def prepare() -> None:
    """Make forks cheap: a child that collects garbage must not copy every page of this process."""
    torch.set_num_threads(1)
    gc.freeze()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
