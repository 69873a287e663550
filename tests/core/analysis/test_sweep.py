"""A sweep's runs as a map: what is compared, what is left out, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lora_lab.analysis import comparable_runs, sweep_map
from lora_lab.analysis.sweep import group_names
from lora_lab.captions import sweep_summary
from lora_lab.errors import RunError
from lora_lab.runs.records import RunRecord, list_runs


def record(
    r=8,
    learning_rate=1e-3,
    loss=None,
    *,
    state="done",
    task="mini-e2e",
    model=None,
    lora=None,
    training=None,
    **metrics,
) -> RunRecord:
    config = {
        "model": {"name": "m", "hub_id": "a/m", "parameters": 9, "dtype": "float32"}
        | (model or {}),
        "task": {"name": task, "synthetic": True},
        "lora": {"r": r, "lora_alpha": 16, "target_modules": ["q", "v"]} | (lora or {}),
        "training": {"learning_rate": learning_rate, "max_steps": 60, "seed": 0} | (training or {}),
    }
    if loss is not None:
        metrics["loss_after"] = loss
    summary = None if state is None else {"state": state, "metrics": metrics}
    return RunRecord("id", Path("runs/id"), config, summary)


def test_a_grid_with_a_hole_and_two_seeds():
    found = sweep_map(
        [
            record(8, 1e-3, 1.5),
            record(8, 1e-3, 2.5, training={"seed": 1}),
            record(2, 1e-3, 1.75),
            record(2, 1e-2, 3.0),
        ]
    )
    assert found.metric == "loss_after"
    assert found.ranks == (2, 8)
    assert found.learning_rates == (1e-3, 1e-2)
    np.testing.assert_array_equal(found.values, np.float32([[1.75, 3.0], [2.0, np.nan]]))
    np.testing.assert_array_equal(found.counts, [[1, 1], [2, 0]])
    assert found.values.dtype == np.float32
    assert found.counts.dtype == np.int32
    assert found.best == (2, 1e-3)
    assert found.note == "means of up to 2 runs a cell"


def test_a_score_is_best_when_highest():
    runs = [record(2, 1e-3, bleu_after=10.0), record(4, 1e-3, bleu_after=30.0)]
    assert sweep_map(runs, "bleu_after").best == (4, 1e-3)
    losses = [record(2, 1e-3, 1.0), record(4, 1e-3, 3.0)]
    assert sweep_map(losses).best == (2, 1e-3)


def test_failed_runs_keep_their_place_and_unfinished_ones_do_not():
    found = sweep_map(
        [
            record(2, 1e-3, 1.0),
            record(2, 1.0, state="failed"),
            record(4, 1e-3, 5.0, state="failed"),
            record(64, 1e-3, state=None),
            record(64, 1e-3, state="stopped"),
            record(64, 1e-3, math.inf),
        ]
    )
    assert found.ranks == (2, 4)
    assert found.learning_rates == (1e-3, 1.0)
    np.testing.assert_array_equal(found.values, np.float32([[1, np.nan], [np.nan, np.nan]]))
    assert found.note == "2 runs failed; 3 runs not finished, or without the metric, left out"


def test_groups_of_one_name_are_told_apart():
    runs = [record(2, 1e-3, 1.0, lora={"lora_alpha": a}) for a in (16, 128)]
    runs.append(record(2, 1e-3, 1.0, training={"weight_decay": 0.1}))
    for run, rows in zip(runs, ("abcdefgh", "abcdefgh", "ijklmnop"), strict=True):
        run.config["fingerprints"] = {"data": rows}
    runs.append(record(2, 1e-3, 1.0, task="mini-nli"))
    assert group_names(comparable_runs(runs)) == [
        "m · mini-e2e · rows abcdef, weight_decay 0.0, α 16 · 1 run",
        "m · mini-e2e · rows abcdef, weight_decay 0.0, α 128 · 1 run",
        "m · mini-e2e · rows ijklmn, weight_decay 0.1, α 16 · 1 run",
        "m · mini-nli · 1 run",
    ]


def test_means_are_taken_over_seeds_alone():
    mixed = [record(r, 1e-3, 1.0, lora={"lora_alpha": a}) for r in (2, 4) for a in (16, 128)]
    with pytest.raises(RunError, match="lora_alpha is 16, 128 at r = 2, and means are taken over"):
        sweep_map(mixed)
    assert comparable_runs(mixed) == ((mixed[0], mixed[2]), (mixed[1], mixed[3]))
    assert [sweep_map(group).alphas for group in comparable_runs(mixed)] == [(16, 16), (128, 128)]
    # α may follow the rank, and another rate is no reason for another α.
    follows = [record(r, 1e-3, 1.0, lora={"lora_alpha": k * r}) for k in (1, 2) for r in (2, 4)]
    assert sweep_map(follows[2:]).note == ""
    assert sweep_map(follows[2:]).alphas == (4, 8)
    assert "α follows the rank: 4 at r = 2, 8 at r = 4" in sweep_summary(sweep_map(follows[2:]))
    assert comparable_runs(follows) == (tuple(follows[:2]), tuple(follows[2:]))
    rates = [record(2, 1e-3, 1.0), record(2, 1e-2, 1.0, lora={"lora_alpha": 32})]
    assert len(comparable_runs(rates)) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_sampling_strategy", "group_by_length"),
        ("weight_decay", 0.1),
        ("loraplus_lr_ratio", 16.0),
        ("max_grad_norm", 0.5),
    ],
)
def test_what_is_no_seed_is_not_averaged(field, value):
    runs = [record(2, 1e-3, 1.0), record(2, 1e-3, 3.0, training={field: value})]
    with pytest.raises(RunError, match=f"not comparable: {field} is"):
        sweep_map(runs)
    assert comparable_runs(runs) == ((runs[0],), (runs[1],))


@pytest.mark.parametrize("field", ["data", "held_out", "task", "body"])
def test_another_data_set_or_model_of_the_same_name_is_another_map(field):
    def run(r, loss, **hashes):
        made = record(r, 1e-3, loss)
        made.config["fingerprints"] = dict.fromkeys(("data", "held_out", "task", "body"), "a")
        made.config["fingerprints"] |= hashes
        return made

    runs = [run(2, 1.0), run(2, 9.0, **{field: "b"}), run(4, 2.0)]
    with pytest.raises(RunError, match=r'not comparable: .* is "a", "b"'):
        sweep_map(runs)
    assert comparable_runs(runs) == ((runs[0], runs[2]), (runs[1],))
    old = record(8, 1e-3, 3.0)
    assert comparable_runs([old, *runs]) == ((runs[0], runs[2]), (old,), (runs[1],))
    found = sweep_map([old, runs[0], runs[2]])
    assert found.note.startswith("1 run of an earlier version, which did not note all")
    moved = run(8, 3.0)
    moved.config["task"]["name"], moved.config["model"]["name"] = "copied.tsv", "elsewhere"
    moved.config["model"]["hub_id"] = None
    assert comparable_runs([*runs, moved])[0] == (runs[0], runs[2], moved)


@pytest.mark.parametrize(
    "more", [{"processes": 2}, {"start_from": {"run": "x", "step": 3}}], ids=["two", "begun"]
)
def test_more_processes_and_another_start_are_another_map(more):
    other = record(2, 1e-3, 1.0)
    other.config.update(more)
    with pytest.raises(RunError, match=f"not comparable: {next(iter(more))} is"):
        sweep_map([record(2, 1e-3, 1.0), other])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"task": "mini-nli"}, 'task is "mini-e2e", "mini-nli"'),
        ({"model": {"hub_id": "b/n"}}, 'model hub_id is "a/m", "b/n"'),
        ({"training": {"max_steps": 100}}, "max_steps is 60, 100"),
        ({"lora": {"target_modules": ["q"]}}, r'target_modules is \["q", "v"\], \["q"\]'),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_and_can_be_sorted(other, said):
    runs = [record(2, 1e-3, 1.0, **other), record(4, 1e-3, 2.0), record(8, 1e-3, 3.0)]
    with pytest.raises(RunError, match=f"not comparable: {said}"):
        sweep_map(runs[::-1])
    assert comparable_runs(runs) == ((runs[1], runs[2]), (runs[0],))
    assert sweep_map(comparable_runs(runs)[0]).ranks == (4, 8)


def test_what_a_run_is_older_than_and_the_order_of_targets_do_not_matter():
    new = record(2, 1e-3, 1.0, lora={"use_rslora": False, "target_modules": ["v", "q"]})
    assert sweep_map([new, record(4, 1e-3, 2.0)]).ranks == (2, 4)
    rs = record(2, 1e-3, 1.0, lora={"use_rslora": True})
    with pytest.raises(RunError, match="use_rslora is true, false"):
        sweep_map([rs, record(4, 1e-3, 2.0)])


def test_nothing_to_show_is_one_clear_line():
    with pytest.raises(RunError, match="no runs to compare"):
        sweep_map([])
    with pytest.raises(RunError, match="none of 2 runs ended with 'loss_after'"):
        sweep_map([record(state=None), record(state="failed")])
    with pytest.raises(RunError, match=r"with 'rouge'; the runs' metrics are bleu_after, loss_aft"):
        sweep_map([record(loss=1.0, bleu_after=3.0)], "rouge")


def test_a_run_of_another_method_is_named_and_left_out_of_the_groups():
    lora = record(loss=1.0)
    other = RunRecord("x", Path("runs/x"), {"model": {}, "task": {"name": "t"}}, None)
    with pytest.raises(RunError, match=r"runs/x/config\.json is no LoRA run's"):
        sweep_map([lora, other])
    assert comparable_runs([lora, other]) == ((lora,),)


def test_runs_found_on_disk_are_read(tmp_path):
    for i, (r, loss) in enumerate([(2, 3.0), (4, 2.0)]):
        folder = tmp_path / f"2031010{i}"
        folder.mkdir()
        made = record(r, 1e-3, loss)
        (folder / "config.json").write_text(json.dumps(made.config))
        (folder / "summary.json").write_text(json.dumps(made.summary))
    found = sweep_map(list_runs(tmp_path))
    assert found.ranks == (2, 4)
    assert found.best == (4, 1e-3)
