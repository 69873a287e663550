"""The kernel is the user's: what other cells do while a run trains, and what a run leaves there."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lora_lab.tasks.generation import evaluating
from lora_lab.training.api import train
from tests.helpers.recorded_fit import Recorded
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task, until
from tests.helpers.tiny_text import tiny_llama

ROOT = Path(__file__).parents[3]
DROPOUT = CONFIG.replace(lora_dropout=0.2)


@pytest.fixture(autouse=True)
def accelerate_as_it_was():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def losses(tmp_path: Path, another_cell: Any = None, **training: Any) -> list[float]:
    """Those of a fit in the middle of whose passes another thread does something."""
    run = Recorded(tmp_path, config=DROPOUT, **training)

    def meanwhile(*_: Any) -> None:
        cell = threading.Thread(target=another_cell)
        cell.start()
        cell.join()

    if another_cell is not None:
        run.lm.model.model.layers[1].register_forward_pre_hook(meanwhile)
    return run.run().losses


def arguments() -> transformers.TrainingArguments:
    return transformers.TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")


def a_trainer() -> None:
    transformers.Trainer(tiny_llama(), arguments())


def an_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True, mixed_precision="bf16")


def seeds() -> None:
    transformers.set_seed(4)
    torch.rand(3)


def defaults() -> None:
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("cell", [arguments, a_trainer, an_accelerator, seeds, defaults])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_another_cell_does_meanwhile_changes_no_step(tmp_path, cell, checkpointing):
    alone = losses(tmp_path, gradient_checkpointing=checkpointing)
    numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        assert losses(tmp_path, cell, gradient_checkpointing=checkpointing) == alone
    finally:
        torch.set_default_dtype(torch.float32)
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_rng_state(numbers[2])


def test_the_users_accelerator_keeps_its_precision_and_the_run_its_own(tmp_path, monkeypatch):
    alone = losses(tmp_path)
    own = Accelerator(cpu=True, mixed_precision="bf16")
    state = dict(AcceleratorState._shared_state)
    assert losses(tmp_path) == alone
    assert own.mixed_precision == "bf16"
    assert AcceleratorState._shared_state == state
    Accelerator(cpu=True, mixed_precision="bf16")  # refused where the first one's was turned
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert losses(tmp_path) == alone


def test_a_precision_that_only_a_launcher_asks_for_is_said_to_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = train(tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=1, eval_examples=0)
    run.result()
    said = "ACCELERATE_MIXED_PRECISION=bf16 changes nothing: a run computes in its model's dtype"
    assert [note for note in run.notes if note.startswith(said)]


@pytest.mark.parametrize("training", [{}, {"gradient_checkpointing": True}])
def test_the_users_random_numbers_are_those_without_a_run(tmp_path, training):
    def drawn() -> list[Any]:
        return [random.random(), np.random.rand(), *torch.rand(3).tolist()]

    transformers.set_seed(7)
    expected = drawn()
    lm, task = tiny_lm(), tiny_task()
    transformers.set_seed(7)
    run = train(
        lm, task, DROPOUT, output_dir=tmp_path, max_steps=3, eval_examples=2,
        **training,
    )  # fmt: skip
    run.result(60)
    assert drawn() == expected


def test_nothing_of_the_process_is_set_at_any_step(tmp_path):
    def settings() -> list[Any]:
        names = ("transformers", "accelerate", "datasets", "torch", None)
        return [
            dict(os.environ), list(warnings.filters), warnings.showwarning, sys.stdout, sys.stderr,
            [logging.getLogger(name).level for name in names],
            torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(),
            torch.is_autocast_enabled("cpu"), torch.get_num_threads(),
            torch.get_rng_state().tolist(), random.getstate(),
            [array.tolist() for array in np.random.get_state()[1:2]],
        ]  # fmt: skip

    lm, task, seen = tiny_lm(), tiny_task(), []
    lm.model.model.layers[1].register_forward_pre_hook(lambda *_: seen.append(settings()))
    before = settings()
    train(
        lm, task, DROPOUT, output_dir=tmp_path, max_steps=3, eval_examples=2, save_steps=2,
        gradient_checkpointing=True,
    ).result(60)  # fmt: skip
    assert len(seen) > 3
    for each in (*seen, settings()):
        for was, now in zip(before, each, strict=True):
            assert now == was


@pytest.mark.parametrize("mode", [False, True])
def test_an_evaluation_that_spans_the_end_leaves_the_modes_as_they_were(tmp_path, mode):
    lm = tiny_lm()
    lm.model.train(mode)
    run = train(lm, tiny_task(), DROPOUT, output_dir=tmp_path, max_steps=4, eval_examples=0)
    until(lambda: run.snapshot.step > 0)
    before = [part.training for part in lm.model.modules()]
    with evaluating(lm.model):
        run.wait(60)
    assert [part.training for part in lm.model.modules()] == before
    assert {part.training for part in lm.model.modules() if not [*part.children()]} == {mode}


SCRIPT = """
import sys
import lora_lab as ll
from tests.helpers.tiny_run import tiny_lm, tiny_task
ll.train(tiny_lm(), tiny_task(), output_dir=sys.argv[1], max_steps=3, eval_examples=2).result(60)
from accelerate.state import AcceleratorState, GradientState, PartialState
print(AcceleratorState._shared_state, GradientState._shared_state, PartialState._shared_state)
print(*({"transformers.trainer", "transformers.training_args"} & sys.modules.keys()))
"""


def test_a_run_makes_no_accelerator_and_imports_no_trainer(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["{} {} {}", ""], done.stderr[-2000:]
