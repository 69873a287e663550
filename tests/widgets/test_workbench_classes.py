"""The workbench on an encoder and a task of classes: priced, trained, tried, for any method."""

from __future__ import annotations

import dataclasses
import time

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.tasks import load_task
from lora_lab.training.snapshot import RunState
from lora_lab_widgets import Workbench
from lora_lab_widgets.panel import Tick
from lora_lab_widgets.serialize import describe
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task, until
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores
from tests.helpers.tiny_seq2seq import tiny_seq2seq

SETTINGS = {
    "max_steps": 4, "per_device_train_batch_size": 4, "max_length": 32, "eval_examples": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        ll.LoraConfig(r=4, target_modules=["q", "v"]),
        ll.BitFitConfig(),
        ll.BottleneckConfig("P", r=4),
        ll.PrefixEmbedConfig(3, 2),
    ],
    ids=lambda config: config.method,
)
def test_a_classifier_is_trained_and_answers_with_a_class(tmp_path, config):
    bench = Workbench(
        tiny_classifier("bert"), task=tiny_classes(), config=config, output_dir=tmp_path, **SETTINGS
    )
    assert bench.panel.tasks == ["halves"]
    planned = bench.budget
    run = bench.start()
    assert run.wait(120)
    assert run.state is RunState.DONE
    assert {"accuracy_before", "accuracy_after"} <= set(run.snapshot.metrics)
    assert planned.parameters_trainable == run.adapter.trainable, "what Savings say is trained"
    assert bench.savings.budget.parameters_trainable == run.adapter.trainable
    assert bench.grid.head == 2 * 32 + 2
    base, adapted = bench.session.answer("abcabc", 8)
    for answer in (base, adapted):
        label, chance = answer.split(" ")
        assert label in ("early", "late")
        assert 50 <= int(chance.strip("(%)")) <= 100


def test_its_savings_are_those_of_its_longest_text():
    bench = Workbench(tiny_classifier("bert"), task=tiny_classes(), **SETTINGS)
    deadline = time.monotonic() + 60
    while not bench.savings.settings_text and time.monotonic() < deadline:
        time.sleep(0.05)
    # Nine letters of one token each, and two tokens around them.
    longest = max(len(example.text) for example in tiny_classes().train) + 2
    assert f"batch 4 × {longest} tokens" in bench.savings.settings_text


def bare_encoder():
    lm = tiny_classifier("bert")
    return dataclasses.replace(lm, model=lm.model.base_model)


def texts():
    return load_task([{"line": "ab"}], text="line", validation=[{"line": "ba"}])


TWO_CLASSES, ONE_NUMBER = "halves is text → one of 2 classes", "counts is text → one number"
NO_HEAD, NO_TEXT = "has no classification head, and", "generates no text, and"


@pytest.mark.parametrize(
    ("lm", "task", "why"),
    [
        (tiny_lm, tiny_classes, rf"{NO_HEAD} {TWO_CLASSES}; .*labels=task.labels"),
        (tiny_lm, tiny_scores, rf"{NO_HEAD} {ONE_NUMBER}; .*num_labels=1"),
        (bare_encoder, tiny_classes, rf"{NO_HEAD} {TWO_CLASSES}; .*labels=task.labels"),
        (bare_encoder, tiny_scores, rf"{NO_HEAD} {ONE_NUMBER}; .*num_labels=1"),
        (bare_encoder, tiny_task, rf"{NO_TEXT} .*; use a language model"),
        (lambda: tiny_classifier("bert"), tiny_task, rf"{NO_TEXT} .*; use a language model"),
        (lambda: tiny_classifier("bert"), tiny_scores, "has a head for 2 classes and .*num_labels"),
        (tiny_scorer, tiny_classes, "has a head for one number and halves has 2 .*labels"),
        (lambda: tiny_seq2seq("t5"), texts, "is no decoder of text, and"),
        (lambda: tiny_seq2seq("t5"), tiny_classes, f"{NO_HEAD} {TWO_CLASSES}"),
    ],
)
def test_a_task_that_the_model_is_not_for_is_refused_when_it_opens(lm, task, why):
    with pytest.raises(ConfigError, match=why) as caught:
        Workbench(lm(), task=task(), **SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_model_that_writes_nothing_is_asked_for_a_task_where_none_was_given():
    with pytest.raises(ConfigError, match=rf"{NO_TEXT} mini-e2e .*, or give the workbench a task"):
        Workbench(tiny_classifier("bert"), **SETTINGS)


def test_what_is_on_show_stays_when_another_task_is_not_for_its_model(tmp_path):
    bench = Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path, **SETTINGS)
    shown = bench.plan
    with pytest.raises(ConfigError, match=f"{NO_HEAD} {TWO_CLASSES}"):
        bench.open(task=tiny_classes())
    assert bench.plan is shown
    assert bench.panel.tasks[0] == "letters"


def stopped_run(folder, config):
    """A run that a workbench before this one was stopped in, and its workbench."""
    settings = {**SETTINGS, "max_steps": 100_000}
    bench = Workbench(
        tiny_classifier("bert"), task=tiny_classes(), config=config, output_dir=folder, **settings
    )
    run = bench.start()
    until(lambda: run.snapshot.step > 1)
    run.stop()
    assert run.wait(60)
    return run, bench


def resume_in(bench, id_):
    """Open the history, press resume, and let the heartbeat beat until it is answered."""
    history = bench.history

    def beat():
        history.update(Tick())
        return history

    history._receive(history, {"type": "open", "value": True}, [])
    until(lambda: beat().form["rows"])
    (row,) = history.form["rows"]
    assert (row["id"], row["state"], row["resumable"]) == (id_, "stopped", True)
    history._receive(history, {"type": "resume", "id": id_}, [])
    until(lambda: bench.run is not None or beat().problem)


@pytest.mark.parametrize(
    "config",
    [
        ll.LoraConfig(r=4, target_modules=["o"]),
        ll.BitFitConfig(),
        ll.LoraConfig(r=2, target_modules=["q"], modules_to_save=["pooler"]),
        [ll.LoraConfig(r=4, target_modules=["q", "v"]), ll.PrefixEmbedConfig(3, 2)],
    ],
    ids=["LoRA", "BitFit", "LoRA, and the pooler", "LoRA+PE"],
)
def test_a_stopped_run_of_classes_is_resumed_from_the_history_by_another_workbench(
    tmp_path, config
):
    run, first = stopped_run(tmp_path, config)
    again = Workbench(tiny_classifier("bert"), task=tiny_classes(), output_dir=tmp_path, **SETTINGS)
    resume_in(again, run.id)
    assert again.history.problem is None
    assert (again.run.id, again.run.folder) == (run.id, run.folder)
    assert again.run.configs == run.configs
    # What is on show is what was chosen: the head that every task of classes trains is no choice.
    assert again.config == first.config
    assert again.panel.settings["method"] == first.panel.settings["method"]
    assert again.panel.settings["max_steps"] == 100_000
    assert again.panel.tasks == ["halves"]
    before = run.snapshot.step
    until(lambda: again.run.snapshot.step > before + 2)
    assert again.run.steps_before == run.losses
    again.run.stop()
    assert again.run.wait(60)
    assert again.session.answer("abcabc", 8)[1].split()[0] in ("early", "late")


def test_a_run_of_classes_asks_the_bench_of_a_language_model_for_its_task(tmp_path):
    run, _ = stopped_run(tmp_path, ll.BitFitConfig())
    bench = Workbench(tiny_lm(), task=tiny_task(), output_dir=tmp_path, **SETTINGS)
    resume_in(bench, run.id)
    assert "trained on halves, a task of your own; pass it" in bench.history.problem["message"]
    assert bench.run is None


def test_trying_a_classifier_asks_for_no_length(tmp_path):
    bench = Workbench(tiny_classifier("bert"), task=tiny_classes(), output_dir=tmp_path, **SETTINGS)
    assert not bench.try_it.writes
    assert Workbench(tiny_lm(), output_dir=tmp_path).try_it.writes


@pytest.mark.parametrize("pairs", [False, True])
def test_a_head_that_learns_a_number_answers_with_one(tmp_path, pairs):
    task = tiny_scores(pairs=pairs)
    bench = Workbench(tiny_scorer(), task=task, output_dir=tmp_path, **SETTINGS)
    assert bench.panel.tasks == ["counts"]
    assert (bench.try_it.tries, bench.try_it.writes) == ("one text, scored", False)
    assert bench.try_it.prompt.count("\n") == pairs
    run = bench.start()
    assert run.wait(120)
    assert run.state is RunState.DONE
    shown = describe(run.snapshot)
    assert bench.savings.budget.parameters_trainable == run.adapter.trainable
    assert bench.grid.head == 33, "32 numbers and a bias"
    assert [entry["label"] for entry in shown["metrics"]] == [
        "held-out loss", "Pearson × 100", "Spearman × 100",
    ]  # fmt: skip
    assert shown["loss_unit"] == "squared error"
    base, adapted = map(float, bench.session.answer(bench.try_it.prompt, 8))
    assert base != adapted
    if pairs:  # the second line counts
        assert float(bench.session.answer("aaaaaa\nbbbbbb", 8)[1]) != float(
            bench.session.answer("aaaaaa\naaaaaa", 8)[1]
        )


@pytest.mark.parametrize("config", [ll.LoraConfig(r=4, target_modules=["q"]), ll.BitFitConfig()])
def test_its_plan_is_tried_with_the_head_on_fake_tensors(tmp_path, config):
    bench = Workbench(
        tiny_classifier("bert"), task=tiny_classes(), config=config, output_dir=tmp_path, **SETTINGS
    )
    tried, shown = bench.plan.dry_run(full=False)(), bench.budget
    assert tried.gradients == 4 * shown.parameters_trainable
    assert tried.total == pytest.approx(shown.adapted.total, rel=0.1)
    bench.plan.dry_run(full=True)()
