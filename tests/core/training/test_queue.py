"""Who trains when: one run at a time, or several beside each other where that is asked for."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch

from lora_lab.errors import RunError
from lora_lab.models import LoadedModel
from lora_lab.tasks.metrics import Metric
from lora_lab.training.api import train
from lora_lab.training.run import Run
from lora_lab.training.snapshot import RunState
from tests.helpers.several_processes import ragged_task
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task
from tests.helpers.tiny_text import tiny_tokenizer

STEPS = 4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gpt2() -> LoadedModel:
    """With dropout on embeddings, attention and branches."""
    model = tiny("gpt2", vocab_size=259, n_positions=128)
    return LoadedModel.given(model, tiny_tokenizer(), "tiny-gpt2")


def made(tmp_path: Any, lm: LoadedModel, seed: int, **more: Any) -> Run:
    settings = {"max_steps": STEPS, "eval_examples": 0, "learning_rate": 1e-2, **more}
    dropout = CONFIG.replace(lora_dropout=0.2)
    return train(
        lm, ragged_task(), dropout, output_dir=tmp_path, start=False, seed=seed, **settings
    )


def in_step(*models: LoadedModel) -> None:
    """Have models wait for each other in the middle of every pass, forward and backward."""
    barrier = threading.Barrier(len(models), timeout=60)

    def meet(*_: Any) -> None:
        barrier.wait()

    for lm in models:
        block = next(m for m in lm.model.modules() if isinstance(m, torch.nn.ModuleList))[1]
        block.register_forward_pre_hook(meet)
        block.register_full_backward_hook(meet)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_runs_at_once_take_the_steps_of_each_alone(tmp_path, checkpointing):
    more = {"gradient_checkpointing": checkpointing}
    alone = [
        made(tmp_path, lm, seed, **more).start().result(60).losses
        for seed, lm in ((1, gpt2()), (2, gpt2()), (3, tiny_lm()))
    ]
    models = gpt2(), gpt2(), tiny_lm()
    in_step(*models)
    runs = [made(tmp_path, lm, seed + 1, **more) for seed, lm in enumerate(models)]
    for run in runs:
        run.start(beside=True)
    assert [run.result(60).losses for run in runs] == alone
    assert alone[0] != alone[1]


def test_the_same_model_is_refused_and_whoever_is_queued_waits_for_all(tmp_path):
    one, other = tiny_lm(), gpt2()
    first, second = made(tmp_path, one, 1), made(tmp_path, other, 2)
    with first.paused(), second.paused():  # neither gets on
        first.start()
        second.start(beside=True)
        assert [first.state, second.state] == [RunState.RUNNING, RunState.RUNNING]
        again = made(tmp_path, one, 3)
        with pytest.raises(RunError, match=f"run {first.id} trains on this very model; start"):
            again.start(beside=True)
        assert again.state is RunState.IDLE
        again.start()
        assert again.snapshot.phase == f"queued behind run {second.id}"
    first.wait(60)
    second.wait(60)
    assert len(again.result(60).losses) == STEPS


def test_one_that_is_queued_behind_the_run_that_waits_for_it_is_refused(begin):
    """A metric, say, which is computed on a run's thread, would wait for ever."""
    said = []

    def asks(*_: object) -> float:
        with pytest.raises(RunError) as refused:
            begin(tiny_lm(1), max_steps=1).result()
        said.append(str(refused.value))
        return 1.0

    task = dataclasses.replace(tiny_task(8, 2), metrics=(Metric("asks", asks, label="asks"),))
    begin(task=task, max_steps=1, eval_examples=1, kept_texts=0, max_length=32).result(60)
    assert "is queued; it begins when the run whose thread this is has ended" in said[0]
