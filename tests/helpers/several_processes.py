"""Trains in one of two processes; `test_processes.py` starts both, and reads what rank 0 found.

RANK=0 WORLD_SIZE=2 … python several_processes.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import LlamaForCausalLM

from lora_lab._util import hardware
from lora_lab._util.hardware import Hardware
from lora_lab._util.python_private import end_without_finalizing
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    LoraConfig,
    PrefixEmbedConfig,
)
from lora_lab.errors import RunError
from lora_lab.tasks import Example, GenerationTask
from lora_lab.training import processes
from lora_lab.training.api import train
from lora_lab.training.resume import resume
from lora_lab.training.run import Run
from tests.helpers.tiny_run import tiny_lm

STEPS = 8
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v", "down"])
A_FROZEN = LORA.replace(use_lorafa=True)
METHODS: dict[str, Any] = {
    "LoRA": LORA,
    # Cuts after steps 2 and 4; from there on smaller parameters are in the place of the first.
    "AdaLoRA": AdaLoraConfig(target_r=2, init_r=4, tinit=1, tfinal=4, deltaT=2),
    "Adapter^D": BottleneckConfig("D", 4),
    "FT": FullConfig(),
    "BitFit and PE": [BitFitConfig(new_biases=True), PrefixEmbedConfig(prefix_length=2)],
}


def ragged_task(examples: int = 48) -> GenerationTask:
    """Answers of 1 to 12 letters, in an order in which neighbours differ much."""
    rows = []
    for i in range(examples):
        letter = "abcdefghijklmnop"[i % 16]
        answer = " ".join([letter] * (1 + i * 7 % 12))
        rows.append(Example(f"{letter} >", answer, (answer,)))
    return GenerationTask("ragged letters", True, rows[:-4], rows[-4:])


def begin(
    folder: Path, config: Any = LORA, batch: int = 8, passes: int = 1, lm: Any = None, **more: Any
) -> Run:
    """A run of 8 steps; every process of several has a batch of its own."""
    settings = {
        "max_steps": STEPS, "learning_rate": 1e-2, "warmup_steps": 0, "eval_examples": 0,
        "save_steps": 0, "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": passes, "max_length": 64,
    }  # fmt: skip
    return train(
        lm or tiny_lm(),
        ragged_task(),
        config,
        output_dir=folder,
        start=False,
        **{**settings, **more},
    )


def stopped(run: Run, step: int) -> Run:
    """Start a run and have this process stop it after so many steps."""
    publish = run.publish

    def look(**changes: Any) -> None:
        publish(**changes)
        if changes.get("step") == step:
            run.stop()

    run.publish = look  # type: ignore[method-assign]
    run.start().wait(120)
    return run


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """A hash of every bit of an adapter."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(name.encode())
        found.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def seen(run: Run) -> dict[str, Any]:
    """What a run came to, and whether both processes have the same."""
    run.start().result(120)
    mine = digest(run.adapter.state())
    others = processes.from_main(lambda: mine)
    return {
        "losses": [list(pair) for pair in run.losses],
        "metrics": dict(run.snapshot.metrics),
        "apart": processes.any_of(mine != others)[0],
    }


def sharded(folder: Path, config: Any = LORA, **more: Any) -> dict[str, Any]:
    """A run whose base is cut, as under `accelerate launch --use_fsdp`."""
    with mock.patch.object(processes, "_sharding", True):
        run = begin(folder, config, batch=4, eval_examples=3, **more)
        return {**seen(run), "local bytes": run.snapshot.memory.weights, "notes": run.notes}


def by_cudas_ways(folder: Path) -> dict[str, Any]:
    """A run on a CPU that is taken for a GPU: moved to a device of its own, fused steps."""
    ways = {"cpu": lambda device: Hardware(device, cuda=True, fused_optimizer=True)}
    moved: list[str] = []

    def to(model: Any, place: torch.device) -> Any:
        moved.append(str(place))
        return model

    with mock.patch.dict(hardware.MAKERS, ways), mock.patch.object(LlamaForCausalLM, "to", to):
        return {**seen(begin(folder, batch=4)), "moved": processes.from_main(lambda: moved)}


def notes_of_two_adapters(folder: Path) -> list[str]:
    """What a run says whose second process has another adapter in the end."""
    run = begin(folder, batch=4)
    publish = run.publish

    def look(**changes: Any) -> None:
        publish(**changes)
        if changes.get("step") == STEPS and processes.rank() == 1:
            with torch.no_grad():
                next(iter(run.adapter.parameters())).view(-1)[0] += 1e-3

    run.publish = look  # type: ignore[method-assign]
    run.start().result(120)
    return run.notes


def main(folder: Path) -> dict[str, Any]:
    """All that the test asks for, by name."""
    second = processes.rank() == 1
    found: dict[str, Any] = {
        name: seen(begin(folder / "methods", config, batch=4)) for name, config in METHODS.items()
    }
    found["accumulated"] = seen(begin(folder / "more", batch=2, passes=2, eval_examples=3))
    found["in shards"] = sharded(folder / "in shards")
    found["A frozen"] = sharded(folder / "A frozen", A_FROZEN, max_steps=2)
    found["by CUDA's ways"] = by_cudas_ways(folder / "by CUDA's ways")
    found["apart"] = notes_of_two_adapters(folder / "apart")
    found["files"] = sorted(p.name for p in (folder / "more").glob("*/*"))

    run = begin(folder / "stopped", batch=4, max_steps=12)
    if second:
        stopped(run, 5)  # one says so, both end
    else:
        run.start().wait(120)
    found["stopped"] = {"losses": run.losses, "folder": str(run.folder)}

    one = next((folder / "begun by one").iterdir())
    again = resume(one, tiny_lm(), ragged_task(), start=False)
    found["resumed"] = seen(again)
    found["resumed"]["batch"] = again.training.per_device_train_batch_size

    run = begin(folder / "failing", batch=4)
    if second:
        run.store.log = lambda _row: 1 / 0
    try:
        run.start().result(120)
    except RunError as error:
        found["failed"] = str(error)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined():
        result = main(Path(sys.argv[1]))
        if os.environ["RANK"] == "0":
            (Path(sys.argv[1]) / "found.json").write_text(json.dumps(result))
    end_without_finalizing(0)
