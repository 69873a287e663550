"""`ll.compare`: each method at its own rate, on held-out examples that chose nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings

import numpy as np
import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ConfigError, RunError, TaskError
from lora_lab.methods.registry import methods as registered
from lora_lab.runs.training_config import TrainingConfig
from lora_lab.sweeps import comparison
from lora_lab.sweeps.design import Design
from lora_lab.tasks.classification import ClassificationTask, LabeledText
from lora_lab.tasks.metrics import F1, Metric
from lora_lab.tasks.prompts import Example
from lora_lab.training.data import RunData
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "warmup_steps": 0, "save_steps": 0}
LORA, BITFIT = ll.LoraConfig(r=2, target_modules=["q", "v"]), ll.BitFitConfig()


def compared(tmp_path, methods=(LORA, BITFIT), lm=None, task=None, **more):
    task = task or tiny_classes(24, 12)
    lm = lm or tiny_classifier("bert")
    return ll.compare(lm, task, methods, output_dir=tmp_path, **{**SHORT, **more})


def test_rates_are_chosen_on_one_half_and_reported_on_the_other(tmp_path, monkeypatch):
    lm, task = tiny_classifier("bert"), tiny_classes(24, 12)
    weights = {name: p.clone() for name, p in lm.model.named_parameters()}
    made = compared(tmp_path, lm=lm, task=task, rates=[1e-9, 1e-2], seeds=2)
    found = made.results(120)
    assert (found.chosen_on, found.reported_on, found.metric) == (6, 6, "loss")
    (sweep,) = made.sweeps.values()
    by_class = sorted(task.validation, key=lambda row: row.label)  # they alternate in the task
    assert [*sweep.task.validation] == by_class[::2]
    assert len(sweep.cells) == 8
    # What is reported, by itself: the adapter on the other half.
    report = dataclasses.replace(task, validation=by_class[1::2])
    assert sorted((row.method, len(row.values)) for row in found.rows) == [
        ("BitFit", 2),
        ("LoRA", 2),
    ]
    for row in found.rows:
        method = [c for c in sweep.cells if c.configs[0].method == row.method]
        scores = {
            rate: [
                sweep.snapshot.ended[c.id].metrics["loss_after"]
                for c in method
                if c.training.learning_rate == rate
            ]
            for rate in (1e-9, 1e-2)
        }
        assert row.learning_rate == min(scores, key=lambda rate: sum(scores[rate]))
        assert row.curve == {rate: tuple(values) for rate, values in scores.items()}
        own = [c for c in method if c.training.learning_rate == row.learning_rate]
        for cell, value in zip(own, row.values, strict=True):
            run = sweep.snapshot.ended[cell.id].run
            ll.load_adapter(lm.model, sweep.folder / run / "adapter")
            rows = RunData(lm, report, TrainingConfig(eval_examples=6), [])
            assert rows.evaluate(adapted=True)["loss"] == pytest.approx(value, rel=1e-6)
            ll.detach(lm.model)
    bare = RunData(lm, report, TrainingConfig(eval_examples=6), []).evaluate(adapted=False)
    assert found.base == pytest.approx(bare["loss"], rel=1e-6)
    assert not ll.attached(lm.model)
    assert all(torch.equal(weights[n], p) for n, p in lm.model.named_parameters())
    assert "2 learning rates a method" in found.note
    # A second call trains nothing, and evaluates nothing.
    monkeypatch.setattr(comparison, "scored", None)
    again = compared(tmp_path, lm=lm, task=task, rates=[1e-9, 1e-2], seeds=2)
    assert again.results(120).to_json() == found.to_json()
    assert next(iter(again.sweeps.values())).snapshot.skipped == 8


def test_what_was_cut_off_while_scoring_goes_on(tmp_path):
    first = compared(tmp_path, [LORA], rates=[1e-2], seeds=2)
    whole = first.results(120)
    path = next(iter(first.sweeps.values())).folder / "reported.json"
    kept = json.loads(path.read_text())
    assert len(kept["scores"]) == 3
    kept["scores"].popitem()
    path.write_text(json.dumps(kept))
    assert compared(tmp_path, [LORA], rates=[1e-2], seeds=2).results(120).rows == whole.rows
    kept["held_out"] = "of other rows"
    kept["scores"] = {name: {"loss": 9e9} for name in kept["scores"]}
    path.write_text(json.dumps(kept))
    assert compared(tmp_path, [LORA], rates=[1e-2], seeds=2).results(120).rows == whole.rows


def test_training_examples_are_an_axis_and_the_smaller_lie_in_the_larger(tmp_path):
    made = compared(
        tmp_path, [LORA], rates=[1e-3], seeds=[5], train_examples=[8, 4], start=False
    )  # fmt: skip
    assert [*made.sweeps] == [4, 8]
    small, large = (sweep.task.train for sweep in made.sweeps.values())
    assert {*small} < {*large}
    found = made.results(120)
    assert [row.train_examples for row in found.rows] == [4, 8]
    for row, sweep in zip(found.rows, made.sweeps.values(), strict=True):
        (run,) = sweep.records()
        assert (row.seconds, row.peak_memory) == (
            run.summary["seconds"],
            run.summary["peak_memory"],
        )
    assert {sweep.folder.name for sweep in made.sweeps.values()} == {"compare-4", "compare-8"}


def test_a_budget_gives_each_method_the_largest_rank_within(tmp_path):
    lm = tiny_lm()
    methods = [LORA, ll.LoraConfig(r=1, target_modules="all-linear")]
    made = ll.compare(
        lm, tiny_task(8, 8), methods, budget=2000, rates=[1e-3], seeds=1, start=False,
        output_dir=tmp_path, **SHORT,
    )  # fmt: skip
    for cell in next(iter(made.sweeps.values())).cells:
        (config,) = cell.configs
        count = ll.budget(lm.model, config).parameters_trainable
        over = ll.budget(lm.model, config.replace(r=config.r + 1)).parameters_trainable
        assert count <= 2000 < over
    for config, said in ((ll.FullConfig(), "FT trains .* has no rank"), (LORA, "more than 5")):
        with pytest.raises(ConfigError, match=said):
            ll.compare(lm, tiny_task(8, 8), [config], budget=5, output_dir=tmp_path, **SHORT)


def test_full_fine_tuning_has_rates_of_its_own_and_so_may_any_method(tmp_path):
    def rates(**more):
        made = compared(tmp_path, [LORA, ll.FullConfig()], seeds=1, start=False, **more)
        found = {"LoRA": [], "FT": []}
        for cell in next(iter(made.sweeps.values())).cells:
            found[cell.configs[0].method].append(cell.training.learning_rate)
        return found

    small = rates()  # a model 32 wide: five times LoRA's, forty times FT's, as their own rates are
    assert small["LoRA"] == [5e-4, 1.5e-3, 5e-3, 1.5e-2, 5e-2]
    assert small["FT"] == [4e-4, 1.2e-3, 4e-3, 1.2e-2, 4e-2]
    named = rates(rates={"LoRA": [1e-3], "": [1e-6, 1e-5]})
    assert named == {"LoRA": [1e-3], "FT": [1e-6, 1e-5]}
    assert rates(rates={"LoRA": [1e-3]}) == {"LoRA": [1e-3], "FT": small["FT"]}


@pytest.mark.parametrize("labels", ["abababab", "aaaabbbb", "ababaabc", "abab"])
def test_both_halves_have_every_class_of_which_there_are_two(labels):
    train = [LabeledText(f"t{i}", label) for i, label in enumerate("abc" * 4)]
    held_out = [LabeledText(f"v{i}", label) for i, label in enumerate(labels)]
    task = ClassificationTask("made", True, ("a", "b", "c"), train, held_out)
    of_size, report = Design.of([LORA]).tasks(task)
    (choose,) = of_size.values()
    for half in (choose, report):
        assert {"a", "b"} <= {row.label for row in half.validation}
    both = [*choose.validation, *report.validation]
    assert sorted(both, key=str) == sorted(held_out, key=str)


@pytest.mark.parametrize("width", [64, 192, 384, 576, 4096, None])
def test_each_methods_own_rate_lies_among_its_rates(width):
    task = next(iter(Design.of([LORA]).tasks(tiny_task(8, 8))[0].values()))
    for name, entry in registered().items():
        config = entry.config(**entry.fixed)
        tried = [
            cell.training.learning_rate
            for cell in Design.of([config], seeds=1).at_width(width).cells(task, None)
        ]
        own = entry.rate_for(width)
        below, above = (sum(sign * rate > sign * own for rate in tried) for sign in (-1, 1))
        assert min(below, above) >= 2, (name, own, tried)


@pytest.mark.parametrize("width", [576, 768, 4096, None])
def test_models_of_the_literatures_width_have_its_rates(width):
    design = Design.of([LORA, ll.FullConfig(), [LORA, ll.PrefixEmbedConfig()]], seeds=1)
    task = next(iter(design.tasks(tiny_task(8, 8))[0].values()))
    found = {}
    for cell in design.at_width(width).cells(task, None):
        name = "+".join(own.method for own in cell.configs)
        found.setdefault(name, []).append(cell.training.learning_rate)
    assert found["LoRA"] == found["LoRA+PreEmbed"] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    assert found["FT"] == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]


def test_two_of_one_method_are_told_apart_and_the_metric_decides(tmp_path):
    methods = [LORA, LORA.replace(lora_alpha=64)]
    found = compared(tmp_path, methods, rates=[1e-3], seeds=1, metric="accuracy").results(120)
    assert {row.setting for row in found.rows} == {"r = 2, q v; α = 8", "r = 2, q v; α = 64"}
    with pytest.raises(ConfigError, match="metric is 'bleu'; halves has loss, accuracy"):
        compared(tmp_path, methods, rates=[1e-3], seeds=1, metric="bleu")


def test_more_seeds_at_the_chosen_rates_alone_train_what_is_new(tmp_path):
    lm, task = tiny_classifier("bert"), tiny_classes(24, 12)
    methods = [LORA, BITFIT, LORA.replace(lora_alpha=64)]
    rates = [[1e-9, 1e-2], [1e-9, 1e-3], [1e-2]]
    first = compared(tmp_path, methods, lm, task, rates=rates, seeds=1)
    chosen = first.results(120)
    tried = {row.setting or row.method: [*row.curve] for row in chosen.rows}
    names = "r = 2, q v; α = 8", "BitFit", "r = 2, q v; α = 64"
    assert tried == dict(zip(names, rates, strict=True))
    own = chosen.own_rates()
    assert [len(each) for each in own] == [1, 1, 1]
    assert own == [[row.learning_rate] for row in sorted(chosen.rows, key=lambda row: row.place)]
    assert own[1][0] in rates[1], "the rows are sorted by size, the rates as the methods are"
    more = compared(tmp_path, methods, lm, task, rates=own, seeds=3)
    found = more.results(120)
    (sweep,) = more.sweeps.values()
    assert (len(sweep.cells), sweep.snapshot.skipped) == (9, 3)
    for row in found.rows:
        assert len(row.values) == 3
        before = next(old for old in chosen.rows if old.place == row.place)
        assert row.values[0] == before.values[0]


def test_all_scores_of_the_reporting_half_are_there_and_others_are_counted_anew(tmp_path):
    lm, task = tiny_classifier("bert"), tiny_classes(24, 12)
    made = compared(tmp_path, [LORA], lm, task, rates=[1e-2], seeds=2)
    found = made.results(120)
    (row,) = found.rows
    assert row.scores["loss"] == row.values
    by_class = sorted(task.validation, key=lambda row: row.label)
    report = dataclasses.replace(task, validation=by_class[1::2])
    records = made.records()
    expected = [
        ll.evaluate(record, report, part="validation", lm=lm, output_dir=tmp_path / "out")
        for record in sorted(records, key=lambda record: record.config["training"]["seed"])
    ]
    for name in ("loss", "accuracy"):
        assert row.scores[name] == pytest.approx([own.scores[name] for own in expected], rel=1e-6)
        ends = [own.intervals[name] for own in expected]
        np.testing.assert_allclose(row.intervals[name], ends, rtol=1e-6)
    bare = ll.evaluate(lm, report, part="validation")
    assert found.base_scores == pytest.approx(bare.scores, rel=1e-6)
    assert found.base_intervals["loss"] == pytest.approx(bare.intervals["loss"], rel=1e-6)
    told = json.loads(json.dumps(found.to_json()))["rows"][0]["scores"]
    assert told == {name: list(values) for name, values in row.scores.items()}
    # With another metric on the task what was scored without it is scored again.
    other = dataclasses.replace(task, metrics=(*task.metrics, F1))
    (again,) = compared(tmp_path, [LORA], lm, other, rates=[1e-2], seeds=2).results(120).rows
    assert again.scores["accuracy"] == row.scores["accuracy"]
    assert "f1" in again.scores


def test_scores_that_an_earlier_version_kept_without_intervals_are_scored_again(tmp_path):
    made = compared(tmp_path, [LORA], rates=[1e-2], seeds=2)
    first = made.results(120)
    (file,) = tmp_path.rglob("reported.json")
    kept = json.loads(file.read_text())
    del kept["intervals"]
    file.write_text(json.dumps(kept))
    assert made.choices() == first
    assert first.rows[0].intervals.keys() >= {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"learning_rate": 1e-3}, ConfigError, "learning_rate is what is compared over"),
        ({"train_examples": 25}, TaskError, "train_examples is 25; halves has 1 to 24"),
        ({"train_examples": []}, ConfigError, "train_examples is empty"),
        ({"eval_examples": 3}, TaskError, "is left with 3 held-out examples"),
        ({"methods": []}, ConfigError, "nothing to compare"),
        ({"seeds": 0}, ConfigError, "nothing to compare"),
        ({"rates": []}, ConfigError, "rates of LoRA is"),
        ({"rates": [[1e-3]]}, ConfigError, "rates has 1 list for 2 methods; give one list a"),
        ({"rates": [[1e-3], []]}, ConfigError, "rates of BitFit is \\[\\]"),
        ({"rates": [[1e-3], 1e-2]}, ConfigError, "rates of BitFit is 0.01; give a list"),
        ({"budget": 0}, ConfigError, "budget is 0"),
        ({"rates": {"Lora": [1e-3]}}, ConfigError, "rates names 'Lora', which is no method"),
        ({"rates": {"LoRA+": [1e-3]}}, ConfigError, "rates names 'LoRA\\+', which is no method"),
        ({"rates": [1e-3, "1e-2"]}, ConfigError, "learning_rate is '1e-2'"),
        ({"methods": LORA}, ConfigError, "methods is LoraConfig.*give a list"),
        ({"methods": None}, ConfigError, "methods is None; give a list"),
        ({"seeds": "all"}, ConfigError, "seeds is 'all'"),
        ({"metric": "bleu"}, ConfigError, "metric is 'bleu'"),
        ({"name": "../up"}, ConfigError, "use letters, digits"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_trained(tmp_path, more, kind, said):
    with pytest.raises(kind, match=said) as refused:
        compared(tmp_path, **{"methods": (LORA, BITFIT), **more})
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_ended_at_no_rate_has_no_row_and_the_others_have_theirs(tmp_path):
    rates = {"LoRA": [1e30, 1e35], "BitFit": [1e-3]}
    found = compared(tmp_path, rates=rates, seeds=2, max_steps=4).results(120)
    assert [row.method for row in found.rows] == ["BitFit"]
    line = "LoRA has no row: its runs ended at no learning rate with every seed ("
    assert found.note.startswith(line)
    assert line in str(found)
    assert found.base > 0
    with pytest.raises(RunError, match="LoRA has no row: its runs ended at no learning rate"):
        compared(tmp_path, [LORA], rates=[1e30, 1e35], seeds=2, max_steps=4).results(120)


def test_a_metric_that_is_no_number_gives_no_row_and_says_so(tmp_path):
    def odd(predictions, _references):
        return math.nan if len(predictions) == sizes[0] else 1.0

    task = dataclasses.replace(tiny_classes(24, 13), metrics=(Metric("odd", odd),))
    sizes = [7]  # of the half that chooses
    with pytest.raises(RunError, match=r"LoRA has no row: .* every seed \(odd is no number\)"):
        compared(tmp_path, [LORA], task=task, metric="odd", rates=[1e-3], seeds=2).results(120)
    sizes[0] = 6  # of the one that reports
    found = compared(tmp_path, [LORA], task=task, metric="odd", rates=[1e-3], seeds=2, name="b")
    line = r"LoRA \(r = 2, q v\) has no row: on the half that reports its odd at 0.001 is no number"
    with pytest.raises(RunError, match=line):
        found.results(120)


def test_methods_that_come_to_the_same_are_said_to(tmp_path):
    small, large = LORA, LORA.replace(r=8)
    line = r"LoRA \(r 2\) and LoRA \(r 8\) are the same within the budget of 700, and have one row"
    with pytest.warns(UserWarning, match=line):
        made = compared(tmp_path, [small, BITFIT, large], budget=700, rates=[1e-3], seeds=1)
    found = made.results(120)
    assert len(found.rows) == 2
    assert re.search(line, found.note)
    with pytest.warns(UserWarning, match="LoRA is listed 2 times, and has one row"):
        compared(tmp_path, [small, small], rates=[1e-3], seeds=1, start=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compared(tmp_path, [small, large], rates=[1e-3], seeds=1, start=False)


def test_rows_before_the_end_are_refused_in_one_line(tmp_path):
    made = compared(tmp_path, rates=[1e-3], seeds=2, start=False)
    with pytest.raises(RunError, match=r"sweep compare-24: 4 of 4 cells have not ended"):
        made.choices()
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_says_nothing_of_the_answers_is_refused_before_anything_is_trained(tmp_path):
    task = tiny_task(8, 8)
    short = tuple(Example(row.prompt, "yes", ("yes",)) for row in task.validation)
    task = dataclasses.replace(task, validation=short)
    line = r"metric is 'bleu', which says nothing of letters \(4 of 4 right answers have fewer"
    with pytest.raises(ConfigError, match=line):
        compared(tmp_path, [LORA], tiny_lm(), task, metric="bleu")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_without_a_value_of_the_answers_is_refused_too(tmp_path):
    task = tiny_classes(24, 12)
    one = [row for row in task.validation if row.label == task.labels[0]]
    for metric, why in ("matthews", "are all of one class"), ("f1", "is of the second class"):
        with pytest.raises(
            ConfigError, match=rf"metric is '{metric}', which says nothing .* {why}"
        ):
            compared(tmp_path, task=dataclasses.replace(task, validation=one), metric=metric)
    assert list(tmp_path.iterdir()) == []
