"""Sweeps: every cell once, what is finished is skipped, what was cut off goes on."""

import dataclasses
import json
import math
import shutil
import threading
import time

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs.records import list_runs
from lora_lab.sweeps import AshaConfig, cell_run, sweep
from lora_lab.sweeps.store import SweepStore
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task, until
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task

# Answering the held-out prompts takes most of a short run: only where scores are looked at.
SHORT = {"max_steps": 3, "per_device_train_batch_size": 4, "eval_examples": 0, "warmup_steps": 0}
SCORED = {**SHORT, "eval_examples": 1}


def run(tmp_path, lm=None, task=None, config=None, **options):
    return sweep(lm or tiny_lm(), task or tiny_task(), config, output_dir=tmp_path, **options)


def in_order(found):
    """The runs in the order of the cells: their names tell the second alone."""
    runs = {record.id: record for record in found.records()}
    return [runs[found.snapshot.ended[cell.id].run] for cell in found.cells]


def test_every_cell_is_trained_once_and_the_model_is_given_back(tmp_path):
    lm = tiny_lm()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    found = run(tmp_path, lm, grid={"r": [1, 2], "seed": [0, 1]}, **SCORED)
    results = found.results(120)
    assert [results[cell.id].state for cell in found.cells] == ["done"] * 4
    assert all(result.metrics["loss_after"] > 0 for result in results.values())
    assert len(found.records()) == 4
    assert {record.config["lora"]["r"] for record in found.records()} == {1, 2}
    assert not ll.attached(lm.model)
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    assert found.snapshot.state == "done"


def test_a_second_call_skips_what_is_finished_and_trains_the_new(tmp_path):
    first = run(tmp_path, grid={"r": [1, 2]}, **SHORT)
    first.results(120)
    again = run(tmp_path, grid={"r": [1, 2, 3]}, **SHORT)
    results = again.results(120)
    assert again.snapshot.skipped == 2
    assert len(results) == 3
    assert len(list_runs(tmp_path / "sweep")) == 3


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    long = {**SHORT, "max_steps": 20, "save_steps": 1}
    first = run(tmp_path, grid={"r": [1, 2]}, **long)
    until(lambda: first.snapshot.run is not None and first.snapshot.run.snapshot.step >= 3)
    first.stop()
    assert first.wait(60)
    assert first.snapshot.state == "stopped"
    assert first.snapshot.ended == {}
    (cut,) = list_runs(tmp_path / "sweep")
    again = run(tmp_path, grid={"r": [1, 2]}, **long)
    results = again.results(120)
    assert {result.state for result in results.values()} == {"done"}
    assert results[again.cells[0].id].run == cut.id, "it goes on in its own folder"
    assert len(list_runs(tmp_path / "sweep")) == 2
    steps = [row["step"] for row in in_order(again)[0].open().rows]
    assert steps == list(range(1, 21)), "each step stands once"


METHODS = [
    [ll.LoraConfig(r=2, target_modules=["q", "v"])],
    [ll.AdaLoraConfig(init_r=3, target_r=2, tinit=1, tfinal=1, deltaT=1, target_modules=["q"])],
    [ll.BitFitConfig(new_biases=True)],
    [ll.FullConfig(top_layers=1)],
    [ll.BottleneckConfig("P", r=4)],
]


@pytest.mark.parametrize("kind", ["decoder", "encoder", "T5"])
def test_methods_are_swept_on_every_kind_of_model(tmp_path, kind):
    lm, task = {
        "decoder": lambda: (tiny_lm(), tiny_task()),
        "encoder": lambda: (tiny_classifier("bert"), tiny_classes()),
        "T5": lambda: (tiny_seq2seq("t5"), uneven_task()),
    }[kind]()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    found = run(tmp_path, lm, task, grid={"configs": METHODS}, **SCORED)
    results = found.results(120)
    problems = {str(c): results[c.id].problem for c in found.cells if results[c.id].problem}
    assert problems == {}
    names = [record.config["configs"][0]["class"] for record in in_order(found)]
    assert names == [type(config).__name__ for (config,) in METHODS]
    assert all(result.metrics["loss_after"] > 0 for result in results.values())
    assert not ll.attached(lm.model)
    after = dict(lm.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], p) for name, p in after.items())


def test_targets_and_layers_are_axes(tmp_path):
    lm = tiny_lm()
    targets = [["q"], ["q", "v"], r"model\.layers\.1\..*(q|v)_proj"]
    found = run(tmp_path, lm, grid={"target_modules": targets}, **SHORT)
    found.results(120)
    adapted = []
    for record in in_order(found):
        ll.load_adapter(lm.model, record.folder / "adapter")
        adapted.append(set(ll.attached(lm.model)["default"].sites))
        ll.detach(lm.model)
    site = "model.layers.{}.self_attn.{}_proj"
    assert adapted == [
        {site.format(i, "q") for i in (0, 1)},
        {site.format(i, role) for i in (0, 1) for role in "qv"},
        {site.format(1, role) for role in "qv"},
    ]


def test_a_run_that_somebody_stops_has_not_ended_its_cell(tmp_path):
    """A kernel that is restarted stops its runs so, from outside."""
    long = {**SHORT, "max_steps": 20, "save_steps": 1}
    first = run(tmp_path, grid={"r": [1, 2]}, **long)
    until(lambda: first.snapshot.run is not None and first.snapshot.run.snapshot.step >= 3)
    first.snapshot.run.stop()
    assert first.results(60) == {}
    assert first.snapshot.state == "stopped"
    assert SweepStore(first.folder).ended() == {}
    again = run(tmp_path, grid={"r": [1, 2]}, **long)
    assert [result.step for result in again.results(120).values()] == [20, 20]
    assert again.snapshot.skipped == 0


def test_a_run_in_line_keeps_its_adapter_when_the_cell_before_it_ends(tmp_path):
    lm = tiny_lm()
    found = run(tmp_path, lm, grid={"seed": [0]}, **{**SHORT, "max_steps": 10})
    until(lambda: found.snapshot.run is not None)
    mine = ll.train(lm, tiny_task(), output_dir=tmp_path, **{**SCORED, "max_steps": 20})
    found.results(60)
    assert mine.result(60).metrics["loss_after"] > 0
    assert ll.attached(lm.model)["default"] is mine.adapter


def test_adapters_of_other_names_stay_on_the_model(tmp_path):
    lm = tiny_lm()
    mine = ll.attach(lm.model, ll.LoraConfig(r=1, target_modules=["o"]), "mine")
    run(tmp_path, lm, grid={"seed": [0]}, **SHORT).results(60)
    assert ll.attached(lm.model) == {"mine": mine}


def test_an_adapter_that_has_to_go_is_named(tmp_path):
    lm = tiny_lm()
    ll.attach(lm.model, ll.LoraConfig(r=1, target_modules=["o"]))
    with pytest.warns(UserWarning, match="the sweep takes the adapter 'default' off the model"):
        found = run(tmp_path, lm, grid={"seed": [0]}, **SHORT)
    found.results(60)
    assert ll.attached(lm.model) == {}


def test_no_cell_begins_or_ends_while_somebody_has_the_model(tmp_path):
    found = run(tmp_path, grid={"seed": list(range(4))}, **{**SHORT, "max_steps": 4})
    visits = 0
    while found.snapshot.going:
        with found.paused() as model:
            adapters = {name: id(each) for name, each in ll.attached(model).items()}
            trained = found.snapshot.run  # which the sweep forgets once it is over
            at = trained and trained.snapshot.step
            time.sleep(0.02)
            assert {name: id(each) for name, each in ll.attached(model).items()} == adapters
            assert (trained and trained.snapshot.step) == at
        visits += 1
        time.sleep(0.005)
    assert visits > 3
    assert {result.state for result in found.results(60).values()} == {"done"}
    with found.paused() as model:
        assert ll.attached(model) == {}


def test_what_is_behind_is_ended_early(tmp_path, monkeypatch):
    # The second cell learns at a rate that does nothing: it cannot be among the best half.
    long = {**SHORT, "max_steps": 60}
    found = run(
        tmp_path,
        config=ll.LoraConfig(r=4, target_modules="all-linear"),
        grid={"learning_rate": [2e-2, 1e-9]},
        early_stopping=AshaConfig(grace_steps=20, reduction=2),
        **long,
    )
    good, bad = found.results(120).values()
    assert good.state == "done"
    assert bad.state == "stopped early"
    assert bad.step < 60
    assert bad.rungs[20] > good.rungs[20]
    assert run(
        tmp_path, config=ll.LoraConfig(r=4, target_modules="all-linear"),
        grid={"learning_rate": [2e-2, 1e-9]}, **long,
    ).results(60).keys() == {good.cell, bad.cell}  # fmt: skip


def test_a_cell_whose_run_was_deleted_stays_ended(tmp_path):
    first = run(tmp_path, grid={"r": [1, 2]}, **SHORT)
    before = first.results(60)
    shutil.rmtree(in_order(first)[0].folder)
    again = run(tmp_path, grid={"r": [1, 2]}, **SHORT)
    assert again.results(60) == before
    assert again.snapshot.skipped == 2
    assert len(again.records()) == 1


def test_a_cell_that_somebody_resumed_to_its_end_is_not_trained_again(tmp_path):
    lm, long = tiny_lm(), {**SCORED, "max_steps": 20, "save_steps": 1}
    first = run(tmp_path, lm, grid={"r": [1]}, **long)
    until(lambda: first.snapshot.run is not None and first.snapshot.run.snapshot.step >= 3)
    first.stop()
    first.wait(60)
    (cut,) = list_runs(tmp_path)
    assert cut.sweep == "sweep"
    metrics = cut.resume(lm, tiny_task()).result(60).metrics
    ll.detach(lm.model)
    (result,) = run(tmp_path, lm, grid={"r": [1]}, **long).results(60).values()
    assert (result.state, result.step, result.run) == ("done", 20, cut.folder.name)
    assert result.metrics == metrics
    assert len(list_runs(tmp_path)) == 1


def test_a_failing_cell_is_told_and_the_others_are_trained(tmp_path, monkeypatch):
    real = cell_run.Run

    def sometimes(lm, task, config, *rest):
        if config.r == 2:
            raise RunError("the disk is full")
        return real(lm, task, config, *rest)

    monkeypatch.setattr(cell_run, "Run", sometimes)
    found = run(tmp_path, grid={"r": [1, 2, 3]}, **SHORT)
    results = found.results(120)
    assert [results[cell.id].state for cell in found.cells] == ["done", "failed", "done"]
    assert results[found.cells[1].id].problem == "the disk is full"
    monkeypatch.setattr(cell_run, "Run", real)
    again = run(tmp_path, grid={"r": [1, 2, 3]}, **SHORT)
    assert {r.state for r in again.results(120).values()} == {"done"}, "a failed one is tried again"
    assert again.snapshot.skipped == 2


def test_the_folder_of_another_sweep_is_not_touched(tmp_path):
    run(tmp_path, grid={"r": [1]}, **SHORT).results(60)
    plan = (tmp_path / "sweep" / "sweep.json").read_bytes()
    with pytest.raises(RunError, match="holds a sweep of another model or task; use another name"):
        run(tmp_path, task=tiny_task(32), grid={"r": [1]}, **SHORT)
    assert (tmp_path / "sweep" / "sweep.json").read_bytes() == plan


def file_of(folder, name, label="label", rows=24):
    """A file train.tsv of two columns of classes, in a folder of its own."""
    path = folder / name / "train.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{name} {i}\t{i % 2}\t{i % 3 % 2}" for i in range(rows)]
    path.write_text("\n".join(["text\tlabel\tother", *lines]))
    return ll.load_task(path, text="text", label=label)


def test_another_data_set_under_the_same_name_is_not_skipped(tmp_path):
    """SST-2/train.tsv and CoLA/train.tsv, of as many rows."""
    lm, grid = tiny_classifier("bert"), {"r": [1]}
    first = file_of(tmp_path, "SST-2")
    run(tmp_path, lm, first, grid=grid, **SHORT).results(60)
    held_out = dataclasses.replace(first, validation=first.validation[:-1])
    others = {
        "other rows": file_of(tmp_path, "CoLA"),
        "another column": file_of(tmp_path, "SST-2", label="other"),
        "other held-out rows": held_out,
        "another order of classes": dataclasses.replace(first, labels=first.labels[::-1]),
    }
    for task in others.values():
        with pytest.raises(RunError, match="holds a sweep of another model or task"):
            run(tmp_path, lm, task, grid=grid, **SHORT)
    moved = dataclasses.replace(first, name="moved.tsv")
    again = run(tmp_path, lm, moved, grid=grid, **SHORT)
    again.results(60)
    assert again.snapshot.skipped == 1


def test_another_model_of_the_same_name_is_not_skipped(tmp_path):
    run(tmp_path, tiny_lm(0), grid={"r": [1]}, **SHORT).results(60)
    with pytest.raises(RunError, match="holds a sweep of another model or task"):
        run(tmp_path, tiny_lm(1), grid={"r": [1]}, **SHORT)


def test_a_sweep_of_an_earlier_version_knows_its_data_by_its_runs(tmp_path):
    first = run(tmp_path, grid={"r": [1]}, **SHORT)
    first.results(60)
    path = first.folder / "sweep.json"
    plan = json.loads(path.read_text())
    plan["told"]["model"].pop("body")
    plan["told"]["task"] = {key: plan["told"]["task"][key] for key in ("name", "examples")}
    path.write_text(json.dumps(plan))
    task = tiny_task()
    other = dataclasses.replace(task, train=task.train[::-1])
    with pytest.raises(RunError, match="it is the task that differs"):
        run(tmp_path, task=other, grid={"r": [1]}, **SHORT)
    again = run(tmp_path, grid={"r": [1, 2]}, **SHORT)
    again.results(60)
    assert again.snapshot.skipped == 1
    assert "held_out" in json.loads(path.read_text())["told"]["task"]


@pytest.mark.parametrize("name", ["../up", "", "a/b", "..", "x y"])
def test_a_name_cannot_climb(tmp_path, name):
    with pytest.raises(ConfigError, match="use letters, digits"):
        run(tmp_path, grid={"r": [1]}, name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_line_costs_that_line_alone(tmp_path):
    found = run(tmp_path, grid={"r": [1, 2]}, **SHORT)
    found.results(60)
    path = tmp_path / "sweep" / "cells.jsonl"
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + lines[1][:20])
    assert list(SweepStore(path.parent).ended()) == [json.loads(lines[0])["cell"]]


def test_two_threads_adding_at_once_lose_nothing(tmp_path):
    store = SweepStore(tmp_path)
    results = [
        [
            cell_run.CellResult(f"{n}-{i}", "done", "r", 1, {"loss_after": 1.0}, {})
            for i in range(50)
        ]
        for n in range(4)
    ]
    threads = [threading.Thread(target=lambda own=own: [*map(store.add, own)]) for own in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.ended()) == 200


def test_asha_ranks_by_what_every_process_has_seen_while_their_cells_still_train(tmp_path):
    settings = {"grid": {"learning_rate": [1e-9]}, **SHORT, "max_steps": 60}
    elsewhere = run(tmp_path, start=False, **settings)
    elsewhere.folder.mkdir(parents=True)
    for cell, loss in (("first", 0.1), ("second", math.nan), ("third", 0.2), ("first", 0.3)):
        SweepStore(elsewhere.folder).add_rung(cell, 20, loss)
    rule = AshaConfig(grace_steps=20, reduction=2)
    (result,) = run(tmp_path, early_stopping=rule, **settings).results(120).values()
    assert result.state == "stopped early", "third of four"
    known = SweepStore(elsewhere.folder)
    assert known.losses_at(20, but="second") == [result.rungs[20], 0.3, 0.2]
    assert known.losses_at(20, but=result.cell) == [0.3, pytest.approx(math.nan, nan_ok=True), 0.2]


def test_a_cell_at_a_rung_is_not_held_against_itself_when_it_goes_on(tmp_path):
    settings = {"grid": {"learning_rate": [1e-2]}, **SHORT, "max_steps": 60}
    rule = AshaConfig(grace_steps=20, reduction=2)
    first = run(tmp_path, start=False, **settings)
    first.folder.mkdir(parents=True)
    (cell,) = first.cells
    SweepStore(first.folder).add_rung(cell.id, 20, 0.0)  # before its process was killed
    (result,) = run(tmp_path, early_stopping=rule, **settings).results(120).values()
    assert result.state == "done"


def test_an_early_stop_beyond_every_cells_end_is_refused_before_anything_trains(tmp_path):
    with pytest.raises(ConfigError, match="no cell trains longer than 4 steps"):
        run(tmp_path, grid={"r": [1]}, early_stopping=AshaConfig(), **{**SHORT, "max_steps": 4})
    epochs = {k: v for k, v in SHORT.items() if k != "max_steps"} | {"num_train_epochs": 1}
    with pytest.raises(ConfigError, match="no cell trains longer than"):
        run(tmp_path, grid={"r": [1]}, early_stopping=AshaConfig(grace_steps=10**6), **epochs)
    assert list(tmp_path.iterdir()) == []
