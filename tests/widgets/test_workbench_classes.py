"""The workbench on an encoder and a task of classes: priced, trained, tried, for any method."""

from __future__ import annotations

import time

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.training.snapshot import RunState
from lora_lab_widgets import Workbench
from lora_lab_widgets.panel import Tick
from lora_lab_widgets.serialize import describe
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, until
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores

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
    run = bench.start()
    assert run.wait(120)
    assert run.state is RunState.DONE
    assert {"accuracy_before", "accuracy_after"} <= set(run.snapshot.metrics)
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


def test_a_model_without_a_head_is_told_when_it_starts(tmp_path):
    bench = Workbench(tiny_lm(), task=tiny_classes(), output_dir=tmp_path, **SETTINGS)
    with pytest.raises(ConfigError, match="has no classification head"):
        bench.start()


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


def test_a_run_of_classes_asks_a_language_model_for_a_head(tmp_path):
    run, _ = stopped_run(tmp_path, ll.BitFitConfig())
    bench = Workbench(tiny_lm(), task=tiny_classes(), output_dir=tmp_path, **SETTINGS)
    resume_in(bench, run.id)
    assert "has no classification head, and halves is" in bench.history.problem["message"]
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
