"""Held-out scores while a run trains, the best of them, and when it is enough.

Oracles: transformers' Trainer with its EarlyStoppingCallback on the same batches; runs that are
ended where the other one was looked at.
"""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState

from lora_lab._util.own_random import seeded
from lora_lab.checkpoint import load_adapter
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    FullConfig,
    LoraConfig,
    PrefixEmbedConfig,
    TrainingConfig,
)
from lora_lab.errors import ConfigError, RunError
from lora_lab.methods.api import attach
from lora_lab.runs.metrics import read_evaluations, read_last_row, read_losses
from lora_lab.runs.records import list_runs
from lora_lab.sweeps.cell_run import train_cell
from lora_lab.sweeps.cells import Space, cells
from lora_lab.sweeps.store import SweepStore
from lora_lab.tasks.families.api import family_of
from lora_lab.training import trackers
from lora_lab.training.api import train
from lora_lab.training.data import RunData
from lora_lab.training.evaluations import Evaluations
from lora_lab.training.resume import resume
from tests.helpers.hf_trainer import PeerTrainer, peer_arguments
from tests.helpers.stopped_at import trained
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import CONFIG, logits, tiny_lm, tiny_task
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores
from tests.helpers.whole_logits import whole_logits  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("one_thread")

EVEN = {"lr_scheduler_type": "constant", "eval_examples": 4}


@pytest.mark.usefixtures("whole_logits")
def test_losses_and_the_step_of_the_early_stop_are_those_of_hf_trainer(begin, tmp_path):
    """Every example has as many labels: HF Trainer's held-out loss is a mean of batches' means."""
    settings = {
        "max_steps": 12, "learning_rate": 1e-2, "eval_steps": 2, "eval_examples": 4,
        "per_device_train_batch_size": 4, "early_stopping_patience": 2, "warmup_steps": 0,
        "early_stopping_threshold": 0.01, "greater_is_better": True,
    }  # fmt: skip
    run = begin(**settings)
    found = run.result(60)
    training = run.training

    lm, task = tiny_lm(), tiny_task()
    with seeded(training.seed):
        adapter = attach(lm.model, CONFIG)
    data = RunData(lm, task, training, [])
    examples = data.training_examples()
    arguments = peer_arguments(
        training, tmp_path, remove_unused_columns=False, label_names=["labels"],
        eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4,
        metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    trainer = PeerTrainer(
        model=lm.model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=family_of(task, lm)(lm, task, 64).encode(task.validation)[0],
        data_collator=data.family.collate,
        callbacks=[EarlyStoppingCallback(2, 0.01)],
    )
    trainer.adapter, trainer.task_losses = adapter, []
    trainer.lengths = data.lengths(examples)
    trainer.callback_handler.pop_callback(transformers.PrinterCallback)
    with torch.random.fork_rng():
        trainer.train()
    theirs = {
        row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row
    }
    ours = {row["step"]: row["loss"] for row in found.evaluations}
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert len(found.losses) == trainer.state.global_step < 12
    assert run.snapshot.stopped_early
    assert max(ours.values()) == pytest.approx(trainer.state.best_metric, rel=1e-4)
    assert found.best_step == max(ours, key=ours.__getitem__)
    assert run.outcome().startswith(f"run {run.id} is done: step {len(found.losses)} of 12")
    assert any("stopped early after step" in note for note in run.notes)
    (record,) = list_runs(tmp_path)
    assert record.state == "done"
    assert record.summary["stopped_early"]
    assert record.summary["best_step"] == found.best_step
    with pytest.raises(RunError, match="is done"):
        resume(record, tiny_lm(), tiny_task())


@pytest.mark.parametrize("greater", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_patience_is_that_of_transformers_callback(greater, threshold):
    rng = random.Random(3)
    for _ in range(50):
        values = [round(rng.random(), 1) for _ in range(12)]
        arguments = SimpleNamespace(
            metric_for_best_model="loss", greater_is_better=greater, load_best_model_at_end=True
        )
        peer, state, control = EarlyStoppingCallback(3, threshold), TrainerState(), TrainerControl()
        own = Evaluations(worker_of(early_stopping_patience=3, early_stopping_threshold=threshold,
                                    greater_is_better=greater))  # fmt: skip
        for step, value in enumerate(values, 1):
            peer.on_evaluate(arguments, state, control, {"eval_loss": value})
            best = state.best_metric
            if best is None or (value > best if greater else value < best):
                state.best_metric, state.best_global_step = value, step
            own._compare(step, value)
            assert (own.best.step, own.best.value) == (state.best_global_step, state.best_metric)
            assert own.is_enough == control.should_training_stop
            if own.is_enough:
                break


def worker_of(**training: Any) -> Any:
    """As much of a worker as the comparison asks for."""
    config = TrainingConfig(eval_steps=1, **training)
    data = SimpleNamespace(family=SimpleNamespace(writes=False), held_out=[1])
    return SimpleNamespace(run=SimpleNamespace(training=config), data=data)


LORA = LoraConfig(r=2, lora_dropout=0.3)
CONFIGS = {
    "LoRA": LORA,
    "AdaLoRA": AdaLoraConfig(target_r=2, init_r=4, tinit=1, tfinal=2, deltaT=1, lora_dropout=0.2),
    "FT": FullConfig(top_layers=1),
    "LoRA+PE": [LORA, PrefixEmbedConfig(3, 2)],
    "BitFit": BitFitConfig(new_biases=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_look_changes_no_bit_and_sees_what_a_run_that_ends_there_sees(begin, config):
    quick = {**EVEN, "max_length": 64, "max_steps": 6, "config": config, "task": tiny_task(16)}
    looked, alone = begin(**quick, eval_steps=3).result(60), begin(**quick).result(60)
    assert looked.losses == alone.losses
    assert looked.metrics == alone.metrics
    assert [row["step"] for row in looked.evaluations] == [3, 6]
    assert looked.evaluations[-1]["loss"] == alone.metrics["loss_after"]
    if config is LORA:
        short = begin(**{**quick, "max_steps": 3}).result(60)
        assert looked.evaluations[0]["loss"] == short.metrics["loss_after"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_best_adapter_is_put_back_saved_and_scored(begin, config):
    """The best is made not to be the last: by the metric read the wrong way round."""
    quick = {**EVEN, "max_length": 64, "max_steps": 6, "config": config, "eval_steps": 2}
    best = {"load_best_model_at_end": True, "greater_is_better": True}
    run = begin(**quick, **best)
    found = run.result(60)
    losses = {row["step"]: row["loss"] for row in found.evaluations}
    step = max(losses, key=losses.__getitem__)
    assert found.best_step == step < 6, losses
    assert found.metrics["loss_after"] == losses[step] != losses[6]
    assert any(f"the adapter is that of step {step}, whose held-out loss" in n for n in run.notes)
    fresh = tiny_lm().model
    load_adapter(fresh, run.folder / "adapter")
    assert torch.equal(logits(fresh), logits(run.model))


@pytest.mark.parametrize("config", [LORA, CONFIGS["AdaLoRA"]], ids=["LoRA", "AdaLoRA"])
@pytest.mark.parametrize("stop_at", [2, 3, 4, 7])
def test_a_run_goes_on_as_if_it_had_never_been_stopped(tmp_path, config, stop_at):
    """After steps 2 and 4 it is ended within the evaluation, which the resumed run makes up for."""
    quick = {**EVEN, "max_length": 64, "max_steps": 12, "eval_steps": 2, "save_steps": 3,
             "load_best_model_at_end": True, "greater_is_better": True,
             "early_stopping_patience": 4}  # fmt: skip
    whole = trained(tiny_lm(), tiny_task(), config, tmp_path / "a", None, **quick)
    cut = trained(tiny_lm(), tiny_task(), config, tmp_path / "b", stop_at, **quick)
    assert cut.snapshot.step == stop_at
    again = resume(cut.folder, tiny_lm(), tiny_task())
    found, expected = again.result(60), whole.result()
    assert found.evaluations == expected.evaluations
    assert len(found.evaluations) in (5, 6)
    assert (found.best_step, found.metrics) == (expected.best_step, expected.metrics)
    assert read_losses(again.folder).pairs() == read_losses(whole.folder).pairs()
    assert read_evaluations(again.folder) == read_evaluations(whole.folder)
    assert torch.equal(logits(again.model), logits(whole.model))
    assert again.snapshot.stopped_early == whole.snapshot.stopped_early


def test_of_classes_and_numbers_all_metrics_are_measured_of_texts_the_loss(begin):
    quick = {**EVEN, "max_steps": 4, "eval_steps": 2, "eval_examples": 8}
    classes = begin(tiny_classifier(), task=tiny_classes(), **quick).result(60)
    assert [{*row} for row in classes.evaluations] == [
        {"step", "loss", "accuracy", "f1", "matthews"}
    ] * 2
    assert classes.evaluations[-1]["accuracy"] == classes.metrics["accuracy_after"]
    numbers = begin(tiny_scorer(), task=tiny_scores(), **quick).result(60)
    assert {*numbers.evaluations[0]} == {"step", "loss", "pearson", "spearman"}
    texts = begin(**quick).result(60)
    assert [{*row} for row in texts.evaluations] == [{"step", "loss", "kept_loss"}] * 2
    written = begin(**quick, metric_for_best_model="eval_chrf").result(60)
    assert {*written.evaluations[-1]} == {
        "step",
        "loss",
        "bleu",
        "chrf",
        "exact_match",
        "kept_loss",
    }
    assert written.evaluations[-1]["chrf"] == written.metrics["chrf_after"]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"eval_steps": 0.25}, [3, 6, 9, 12]),
        ({"eval_steps": 0.3}, [4, 8, 12]),  # 3.6, rounded up as in transformers
        ({"eval_steps": 5.0}, [5, 10]),
        ({"eval_steps": 50}, []),
        ({"eval_steps": 4, "eval_strategy": "no"}, []),
        (
            {"eval_strategy": "epoch", "per_device_train_batch_size": 12},
            [6, 11, 12],
        ),  # of 64 examples
    ],
)
def test_when_it_is_evaluated(begin, settings, steps):
    found = begin(eval_examples=2, **settings).result(60)
    assert [row["step"] for row in found.evaluations] == steps


def test_files_and_trackers_have_them(begin, tmp_path, monkeypatch):
    told: list[Any] = []

    class Recorder(transformers.TrainerCallback):
        def on_log(self, _arguments, state, _control, logs=None, **_):
            told.append((state.global_step, logs))

    monkeypatch.setattr(trackers, "tracker_callbacks", lambda _: [Recorder()])
    run = begin(**EVEN, max_steps=3, eval_steps=2)
    found = run.result(60)
    (record,) = list_runs(tmp_path)
    opened = record.open()
    assert opened.evaluations == found.evaluations
    assert opened.losses == found.losses
    assert [row["step"] for row in opened.rows] == [1, 2, 2, 3]
    (row,) = [row for row in opened.rows if "eval_loss" in row]
    assert row["eval_loss"] == found.evaluations[0]["loss"]
    assert read_last_row(run.folder)["step"] == 3
    scores = {name: row[name] for name in ("eval_loss", "eval_kept_loss")}
    assert (2, scores) in told
    assert run.snapshot.evaluations == found.evaluations


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"eval_strategy": "steps"}, "eval_strategy='steps' needs eval_steps"),
        ({"eval_strategy": "never"}, "eval_strategy is 'never'; use 'no', 'steps' or 'epoch'"),
        ({"eval_steps": 0}, "eval_steps is 0"),
        ({"eval_steps": 2.5}, "eval_steps is 2.5"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end goes by evaluations .* set"),
        ({"early_stopping_patience": 2}, "early_stopping_patience goes by evaluations"),
        ({"eval_steps": 2, "early_stopping_patience": 0}, "early_stopping_patience is 0"),
        ({"eval_steps": 2, "eval_examples": 0}, "scores held-out examples, and eval_examples is 0"),
        ({"eval_steps": 2, "metric_for_best_model": "rouge"}, "'rouge', which letters does not"),
        ({"eval_steps": 2, "metric_for_best_model": 3}, "metric_for_best_model is 3"),
        ({"eval_steps": 20, "load_best_model_at_end": True}, "eval_steps=20 .* max_steps=12"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(begin, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        begin(**{"eval_examples": 4, **settings})
    assert not [*tmp_path.iterdir()]


def test_a_cell_that_stops_early_has_ended(tmp_path):
    training = TrainingConfig(
        max_steps=9, eval_steps=1, eval_examples=2, early_stopping_patience=1,
        greater_is_better=True, learning_rate=1e-2,
    )  # fmt: skip
    (cell,) = cells(CONFIG, training, Space(grid={"seed": [1]}))
    found = train_cell(tiny_lm(), tiny_task(), cell, SweepStore(tmp_path))
    assert found is not None
    assert found.state == "done"
    assert 0 < found.step < 9


def test_the_best_cannot_go_by_a_score_without_a_value(tmp_path):
    task = tiny_classes(8, 8)
    one = [row for row in task.validation if row.label == task.labels[0]]
    settings = {"max_steps": 2, "eval_steps": 1, "metric_for_best_model": "matthews"}
    said = r"'matthews', which says nothing of halves \(the right answers are all of one class\)"
    with pytest.raises(ConfigError, match=said):
        train(
            tiny_classifier("bert"), replace(task, validation=one), CONFIG, output_dir=tmp_path,
            **settings,
        )  # fmt: skip
    assert not [*tmp_path.iterdir()]
