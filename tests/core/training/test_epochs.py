"""Epochs: how many steps they are, which examples a step has, and how a run goes on within one.

That the losses are HF Trainer's is in test_same_as_hf_trainer.py.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from lora_lab.configs import AdaLoraConfig, LoraConfig, TrainingConfig
from lora_lab.errors import ConfigError, TaskError
from lora_lab.runs.metrics import read_losses
from lora_lab.runs.run_file import RunConfig
from lora_lab.sweeps.cell_run import train_cell
from lora_lab.sweeps.cells import Space, cells
from lora_lab.sweeps.store import SweepStore
from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.resume import resume
from lora_lab.training.sampler import StepSampler
from tests.helpers.stopped_at import trained
from tests.helpers.tiny_run import CONFIG, logits, tiny_lm, tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("lengths", [None, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
def test_each_epoch_has_every_example_once_and_ends_with_what_is_left(lengths):
    whole = list(StepSampler(10, 4, 9, 7, lengths=lengths, by_epoch=True).steps())
    assert [len(step) for step in whole] == [4, 4, 2] * 3
    for start in (0, 3, 6):
        assert sorted(row for step in whole[start : start + 3] for row in step) == [*range(10)]
    assert whole[:3] != whole[3:6]
    for done in range(10):
        rest = StepSampler(10, 4, 9, 7, done, lengths, by_epoch=True)
        assert list(rest.steps()) == whole[done:], "a pure function of the step"


def test_processes_take_equally_many_passes():
    """As accelerate's even_batches: the last batch is filled from the epoch's beginning."""
    for examples, whole in ((10, 6), (3, 8)):
        steps = list(StepSampler(examples, 12, 2, 0, by_epoch=True, whole=whole).steps())
        order = steps[0][:examples]
        filled = -examples % whole
        assert steps[0][examples:] == (order * 4)[:filled]
        assert len(steps[0]) % whole == 0


def test_a_run_of_epochs_trains_on_everything_and_says_its_steps(begin):
    run = begin(max_steps=-1, num_train_epochs=1.5, per_device_train_batch_size=12, save_steps=0)
    assert run.training.max_steps == 9  # 64 examples are 6 steps, the last one of 4
    found = run.result(60)
    assert len(found.losses) == run.snapshot.total_steps == 9
    tokens = [row["tokens"] // 10 for row in json_lines(run.folder / "metrics.jsonl")]
    assert tokens == [12] * 5 + [4] + [12] * 3
    recorded = json.loads((run.folder / "config.json").read_text())["training"]
    assert (recorded["num_train_epochs"], recorded["max_steps"]) == (1.5, 9)


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_max_steps_overrides_epochs_as_in_hf_trainer(begin):
    assert TrainingConfig(num_train_epochs=2).max_steps == -1
    assert TrainingConfig(max_steps=100, num_train_epochs=2).max_steps == 100
    assert begin(max_steps=3, num_train_epochs=2, start=False).training.max_steps == 3
    for wrong in (0, -1, float("nan"), "2"):
        with pytest.raises(ConfigError, match="num_train_epochs"):
            TrainingConfig(num_train_epochs=wrong)
    with pytest.raises(ConfigError, match=r"max_steps is .*; it must be"):
        TrainingConfig(num_train_epochs=1e308).for_examples(640)
    for wrong in (0, -2, -1.0):
        with pytest.raises(ConfigError, match="max_steps"):
            TrainingConfig(max_steps=wrong)


@pytest.mark.parametrize("stop_at", [2, 3])
def test_it_goes_on_within_an_epoch_and_between_two(tmp_path, stop_at):
    config = LoraConfig(r=2, lora_dropout=0.3)
    quick = {"num_train_epochs": 2, "eval_examples": 0, "eval_strategy": "no"}
    task = tiny_task(10)  # in steps of 4
    whole = trained(tiny_lm(), task, config, tmp_path / "a", None, **quick)
    cut = trained(tiny_lm(), task, config, tmp_path / "b", stop_at, **quick)
    assert cut.snapshot.step == stop_at
    again = resume(cut.folder, tiny_lm(), task)
    again.result(60)
    assert read_losses(again.folder).pairs() == read_losses(whole.folder).pairs()
    assert len(whole.losses) == 6
    assert torch.equal(logits(again.model), logits(whole.model))


def test_what_does_not_fit_is_counted_off(begin):
    rows = [Example("q >", "a " * (30 if i % 4 == 0 else 2), ("a",)) for i in range(40)]
    run = begin(
        task=GenerationTask("t", True, rows, rows[:2]), max_steps=-1, num_train_epochs=1,
        max_length=16, too_long="drop",
    )  # fmt: skip
    assert run.training.max_steps in (4, 5)
    assert len(run.result(60).losses) == run.snapshot.total_steps == 4
    assert "1 epochs of 30 examples are 4 steps" in run.notes
    recorded = json.loads((run.folder / "config.json").read_text())
    assert recorded["training"]["max_steps"] == 4
    assert (
        RunConfig.from_dict(
            {**recorded, "sources": {"model": {"name": "m"}, "task": {"name": "t"}}}
        ).training
        == run.training
    )


def test_a_schedule_of_ranks_has_to_fit_into_them(begin):
    config = AdaLoraConfig(target_r=2, init_r=4, tinit=1, tfinal=5, deltaT=1)
    with pytest.raises(ConfigError, match="4 steps"):
        begin(config=config, task=tiny_task(32), max_steps=-1, num_train_epochs=1)


def test_a_stream_has_no_epochs(begin):
    def rows():
        while True:
            yield {"prompt": "a", "completion": "b"}

    with pytest.raises(TaskError, match="max_steps"):
        begin(task=rows, max_steps=-1, num_train_epochs=1)


def test_cells_of_a_sweep_take_them(tmp_path):
    made = cells(
        CONFIG,
        TrainingConfig(eval_examples=0, warmup_steps=0.1, num_train_epochs=1),
        Space(grid={"num_train_epochs": [0.5, 1]}),
    )
    assert len({cell.id for cell in made}) == 2
    other = cells(
        CONFIG,
        TrainingConfig(eval_examples=0, warmup_steps=0.3, num_train_epochs=1),
        Space(grid={"num_train_epochs": [0.5, 1]}),
    )
    assert not {cell.id for cell in made} & {cell.id for cell in other}
    steps = [train_cell(tiny_lm(), tiny_task(16), c, SweepStore(tmp_path)).step for c in made]
    assert Counter(steps) == {1: 1, 2: 1}
