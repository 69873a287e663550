"""Methods side by side: what makes a row, what is left out, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

from lora_lab import train
from lora_lab.analysis import comparable_methods, compare_methods
from lora_lab.analysis.differing import NO_MATTER, settings_in_words
from lora_lab.analysis.methods import method_group_names
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    BottleneckConfig,
    FullConfig,
    HeadConfig,
    LoraConfig,
    PrefixEmbedConfig,
)
from lora_lab.errors import RunError
from lora_lab.runs.records import list_runs
from tests.helpers.ended_runs import LORA, record
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


def test_a_row_a_method_with_the_fewest_parameters_first():
    found = compare_methods(
        [
            record([FullConfig()], 1.0, trainable=900, training={"learning_rate": 1e-5}),
            record([LORA, PrefixEmbedConfig(8, 4)], 2.0, trainable=200),
            record([BitFitConfig(new_biases=True)], 3.0, trainable=30),
        ]
    )
    assert [row.method for row in found.rows] == ["BitFit", "LoRA+PE", "FT"]
    assert [row.setting for row in found.rows] == [
        "new biases",
        "r = 2, q v; l_p = 8, l_i = 4",
        "",
    ]
    last = found.rows[-1]
    assert (last.trainable, last.seconds, last.learning_rate) == (900, 10.0, 1e-5)
    assert (last.peak_memory, last.checkpoint_bytes) == (1900, 3600)
    assert (last.mean, last.spread) == (1.0, None)
    assert (found.model, found.task, found.steps, found.note) == ("m", "mini-e2e", 60, "")
    assert found.best is last


def test_seeds_make_one_row_with_their_spread():
    runs = [record(loss=loss, seconds=s) for loss, s in ((1.0, 5), (2.0, 50), (6.0, 7))]
    (row,) = compare_methods(runs).rows
    assert row.values == (1.0, 2.0, 6.0)
    assert row.mean == 3.0
    assert row.spread == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert row.seconds == 7
    assert compare_methods(runs).note == "3 runs a row: mean ± standard deviation"
    mixed = compare_methods([*runs, record([FullConfig()], 1.0)])
    assert mixed.note.startswith("1 to 3 runs a row")


def test_other_settings_and_learning_rates_are_rows_of_their_own():
    found = compare_methods(
        [
            record(),
            record(training={"learning_rate": 2e-3}),
            record([LoraConfig(r=4, target_modules=["q", "v"])], trainable=200),
        ]
    )
    assert [(row.setting, row.learning_rate) for row in found.rows] == [
        ("r = 2, q v", 1e-3),
        ("r = 2, q v", 2e-3),
        ("r = 4, q v", 1e-3),
    ]


@pytest.mark.parametrize(
    ("field", "values", "shown"),
    [
        ("lora_alpha", (16, 128), ("α = 16", "α = 128")),
        ("lora_dropout", (0.0, 0.1), ("dropout = 0", "dropout = 0.1")),
        ("use_rslora", (False, True), ("use_rslora = False", "use_rslora = True")),
        ("init_lora_weights", (True, "pissa"), ("init_lora_weights = True", "… = pissa")),
        ("rank_pattern", ({}, {"q": 4}), ("rank_pattern = {}", "rank_pattern = {'q': 4}")),
    ],
)
def test_rows_of_one_method_that_differ_do_not_look_the_same(field, values, shown):
    runs = [record([LORA.replace(**{field: value})], i) for i, value in enumerate(values)]
    other = record([BitFitConfig()], 3.0, trainable=1000)
    found = compare_methods([*runs, other])
    told = [f"r = 2, q v; {text.replace('…', field)}" for text in shown]
    assert {row.setting: row.values for row in found.rows} == {
        told[0]: (0,),
        told[1]: (1,),
        "": (3,),
    }


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("loraplus_lr_ratio", (None, 16.0)),
        ("weight_decay", (0.0, 0.1)),
        ("train_sampling_strategy", ("random", "group_by_length")),
    ],
)
def test_no_field_of_the_training_but_the_seed_is_averaged_over(field, values):
    runs = [
        record(loss=i, training={field: value, "seed": seed})
        for i, value in enumerate(values)
        for seed in (0, 1)
    ]
    found = compare_methods(runs)
    assert sorted(row.values for row in found.rows) == [(0, 0), (1, 1)]
    assert all(f"{field} = " in row.setting for row in found.rows)
    assert len({row.setting for row in found.rows}) == 2


def test_a_run_that_went_on_from_another_is_no_other_seed_of_a_fresh_one():
    begun = record(loss=1.0, training={"seed": 1})
    begun.config["start_from"] = {"run": "20260131-142501-4f2a", "step": 60}
    fresh, other = compare_methods([record(), begun]).rows
    assert (fresh.values, other.values) == ((2.0,), (1.0,))
    assert other.setting == "r = 2, q v; start_from = run 20260131-142501-4f2a, step 60"


def test_what_a_run_is_older_than_makes_no_other_row():
    old = record()
    old.config["configs"] = [{"class": "LoraConfig", "r": 2, "target_modules": ["v", "q"]}]
    (row,) = compare_methods([old, record(training={"seed": 1})]).rows
    assert len(row.values) == 2


def test_data_sets_of_one_name_are_not_compared():
    runs = [record(), record([BitFitConfig()])]
    for run, rows in zip(runs, "ab", strict=True):
        run.config["fingerprints"] = {"base": "x", "data": rows}
    with pytest.raises(RunError, match='not comparable: rows is "a", "b"'):
        compare_methods(runs)


def test_the_same_run_twice_is_said():
    note = compare_methods([record(), record(), record(loss=1.0, training={"seed": 1})]).note
    assert note.endswith("1 run of a seed that its row has already, with its value")


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        (AdaLoraConfig(4, 6, target_modules="all-linear"), "r = 6 → 4, all-linear"),
        (BottleneckConfig("P", 16), "r = 16"),
        (FullConfig(top_layers=2), ""),
    ],
)
def test_settings_are_said_in_the_papers_letters(config, setting):
    (row,) = compare_methods([record([config])]).rows
    assert (row.method, row.setting) == (config.method, setting)


def test_a_score_is_best_when_highest_and_the_base_is_kept():
    runs = [
        record([LORA], None, bleu_before=2.0, bleu_after=30.0),
        record([FullConfig()], None, bleu_before=4.0, bleu_after=20.0),
    ]
    found = compare_methods(runs, "bleu_after")
    assert (found.best.method, found.base) == ("LoRA", 3.0)
    assert compare_methods([record()]).base is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"task": "mini-nli"}, 'task is "mini-e2e", "mini-nli"'),
        ({"model": {"hub_id": "b/n"}}, 'model hub_id is "a/m", "b/n"'),
        ({"training": {"max_steps": 100}}, "max_steps is 60, 100"),
        ({"training": {"per_device_train_batch_size": 2}}, "per_device_train_batch_size is 8, 2"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(other, said):
    with pytest.raises(RunError, match=f"not comparable: {said}; compare runs of one model"):
        compare_methods([record(), record([FullConfig()], **other)])


def test_what_a_method_may_choose_for_itself_does_not_matter():
    free = {"learning_rate": 1e-5, "weight_decay": 0.1, "seed": 3, "save_steps": 0}
    free["train_sampling_strategy"] = "group_by_length"  # the other is older than the choice
    assert len(compare_methods([record(), record([FullConfig()], training=free)]).rows) == 2


@pytest.mark.parametrize(
    "looks",
    [
        {"eval_steps": 10},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "no"},
        {"eval_steps": 0.25, "metric_for_best_model": "accuracy", "greater_is_better": True},
        {"eval_steps": 5, "early_stopping_threshold": 0.1, "report_to": ["tensorboard"]},
    ],
)
def test_looks_on_the_way_by_which_nothing_is_chosen_tell_no_runs_apart(looks):
    runs = [record(), record(loss=3.0, training={"seed": 1, **looks})]
    (row,) = compare_methods(runs).rows
    assert (row.setting, row.values) == ("r = 2, q v", (2.0, 3.0))
    assert settings_in_words(runs, ("seed", *NO_MATTER)) == ["r = 2, q v"] * 2


@pytest.mark.parametrize(
    "chosen", [{"load_best_model_at_end": True}, {"early_stopping_patience": 2}]
)
def test_looks_by_which_the_best_or_the_last_step_is_chosen_do(chosen):
    runs = [record(training={"eval_steps": n, **chosen}) for n in (20, 10)]
    with pytest.raises(RunError, match="not comparable: eval_steps is 20, 10"):
        compare_methods(runs)


def test_runs_without_the_metric_are_left_out_and_counted():
    runs = [
        record(),
        record([FullConfig()], state="failed"),
        record([FullConfig()], state=None),
        record([FullConfig()], math.nan),
    ]
    found = compare_methods(runs)
    assert [row.method for row in found.rows] == ["LoRA"]
    assert found.note == "1 run failed; 2 runs not finished, or without the metric, left out"


def test_nothing_to_show_is_one_clear_line():
    with pytest.raises(RunError, match="no runs to compare"):
        compare_methods([])
    with pytest.raises(RunError, match="none of 1 runs ended with 'loss_after'"):
        compare_methods([record(state="failed")])
    with pytest.raises(RunError, match="the runs' metrics are loss_after"):
        compare_methods([record()], "accuracy_after")


def test_runs_from_before_comparisons_are_named():
    old = record()
    del old.config["configs"]
    with pytest.raises(RunError, match=r"runs/id/config\.json does not tell its method"):
        compare_methods([old])
    old = record()
    del old.summary["trainable"]
    with pytest.raises(RunError, match=r"summary\.json has no 'trainable'"):
        compare_methods([old])


def test_the_table_in_text_in_html_and_as_json():
    found = compare_methods([record(loss=1.25, trainable=18_432), record(loss=1.75)])
    head, line, note = str(found).splitlines()
    assert "trainable" in head
    assert "18,432" in line
    assert "1.50 ± 0.35" in line
    assert note.startswith("2 runs a row")
    assert found._repr_html_().count("<tr>") == 2
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["rows"][0]["values"] == [1.25, 1.75]
    assert plain["rows"][0]["mean"] == 1.5


def test_a_real_run_tells_what_it_took(tmp_path):
    lm, task = tiny_lm(), tiny_task()
    run = train(lm, task, CONFIG, output_dir=tmp_path, max_steps=3, eval_examples=2)
    run.result()
    found = compare_methods(list_runs(tmp_path))
    (row,) = found.rows
    expected = sum(4 * (site.A.shape[1] + site.B.shape[0]) for site in run.adapter.sites.values())
    assert row.trainable == expected
    assert row.peak_memory == run.snapshot.memory.peak
    # float32, and safetensors' header
    assert 4 * expected < row.checkpoint_bytes < 4 * expected + 10_000
    assert row.seconds > 0
    assert found.base == run.result().metrics["loss_before"]


def test_heads_are_trained_and_not_counted():
    """Hu et al. (2022) do not count them; LoRA's is in its modules_to_save."""
    runs = [
        record([LORA], trainable=100 + 50),
        record([BitFitConfig(), HeadConfig()], trainable=30 + 50),
        record([PrefixEmbedConfig(8, 4), HeadConfig()], trainable=40 + 50),
        record([HeadConfig()], trainable=50),
    ]
    for run in runs:
        run.config["task"]["head_parameters"] = 50
    found = compare_methods(runs)
    assert [(row.method, row.trainable) for row in found.rows] == [
        ("BitFit", 30),
        ("PreEmbed", 40),
        ("Head", 50),
        ("LoRA", 100),
    ]
    assert found.note == "heads of 50 parameters are trained too and not counted"


def test_what_was_kept_stands_beside_what_was_learned_and_on_how_many_examples():
    runs = [
        record(loss=1.0, kept_loss_before=2.0, kept_loss_after=2.5),
        record(loss=1.2, training={"seed": 1}, kept_loss_before=2.0, kept_loss_after=2.7),
        record([FullConfig()], loss=0.9, trainable=900),  # of an earlier version
    ]
    for run in runs:
        run.summary["evaluated"] = {"examples": 16, "of": 4672}
    found = compare_methods(runs)
    assert [row.kept for row in found.rows] == [(2.5, 2.7), ()]
    assert found.kept_base == 2.0
    assert found.rows[0].evaluated == (16, 4672)
    header, lora, full = str(found.to_table()).splitlines()
    assert "kept loss" in header
    assert "2.60 ± 0.14" in lora
    assert "±" not in full
    assert found.note.startswith("scored on 16 of 4,672 held-out examples; ")
    assert json.loads(json.dumps(found.to_json()))["rows"][0]["kept"] == [2.5, 2.7]
    assert "kept loss" not in str(compare_methods([runs[2]]).to_table())
    by_kept = compare_methods(runs, "kept_loss_after")
    assert by_kept.best.values == (2.5, 2.7)
    assert by_kept.base == 2.0


def test_kept_losses_on_other_texts_are_told():
    scores = {"kept_loss_before": 2.0, "kept_loss_after": 2.5}
    runs = [record(**scores), record(training={"kept_texts": 4}, **scores)]
    assert "kept loss is on 4 and 16 texts: not the same in all runs" in compare_methods(runs).note
    runs = [record(**scores), record(training={"seed": 1}, **scores)]
    assert "texts" not in compare_methods([*runs, record(training={"kept_texts": 0})]).note


def test_how_much_text_was_measured_matters_to_what_was_kept_alone():
    scores = {"kept_loss_before": 2.0, "kept_loss_after": 2.5}
    for changed in ({"kept_texts": 4}, {"kept_data": "rte.tsv"}):
        runs = [record(**scores), record(training={"seed": 1, **changed}, **scores)]
        assert len(compare_methods(runs).rows) == 1
        with pytest.raises(RunError, match=f"not comparable: {next(iter(changed))} is"):
            compare_methods(runs, "kept_loss_after")


def test_runs_are_sorted_into_groups_that_can_be_compared_the_largest_first():
    alone = record(training={"max_length": 64})
    both = [record(), record([FullConfig()], 1.0, training={"learning_rate": 1e-5})]
    without = record()
    del without.config["configs"]  # it does not tell its method
    groups = comparable_methods([alone, *both, without])
    assert groups == ((both[0], both[1]), (alone,))
    assert [len(compare_methods(group).rows) for group in groups] == [2, 1]
    assert method_group_names(groups) == [
        "m · mini-e2e · max_length 128 · 2 runs",
        "m · mini-e2e · max_length 64 · 1 run",
    ]
