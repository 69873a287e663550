"""A new run that starts from the adapter of an older one, with other steps, batches or data."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

import lora_lab as ll
from lora_lab.cli import main
from lora_lab.errors import AdapterError, ConfigError, RunError
from lora_lab.runs import read_history
from lora_lab.runs.records import list_runs
from lora_lab.training.start_from import find_start
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_files import tiny_recipe
from tests.helpers.tiny_run import CONFIG, logits, tiny_lm, tiny_task
from tests.helpers.tiny_scores import tiny_scorer, tiny_scores

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = ll.LoraConfig(r=2, lora_alpha=3)
QUICK = {"max_steps": 3, "eval_examples": 0, "learning_rate": 1e-2, "max_length": 32}
CONFIGS = {
    "LoRA": LORA,
    "ranks": ll.LoraConfig(r=3, lora_alpha=5, use_rslora=True, rank_pattern={"q": 5}),
    "DoRA": LORA.replace(use_dora=True, target_modules="all-linear"),
    "tokens": LORA.replace(trainable_token_indices=[5, 9]),
    "AdaLoRA": ll.AdaLoraConfig(target_r=2, init_r=3, tinit=1, tfinal=1, deltaT=1),
    "IA3": ll.IA3Config(),
    "OFT": ll.OFTConfig(oft_block_size=4, target_modules=["o"]),
    "FT": ll.FullConfig(top_layers=1),
    "BitFit": ll.BitFitConfig(new_biases=True),
    "PreLayer": ll.PrefixLayerConfig(2, 1),
    "Adapter^H": ll.BottleneckConfig("H", r=3),
    "LoRA+PE": [LORA, ll.PrefixEmbedConfig(3, 2)],
}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A run that is over."""
    folder = tmp_path_factory.mktemp("old")
    run = ll.train(tiny_lm(), tiny_task(), CONFIG, output_dir=folder, **QUICK)
    run.result(60)
    return run


def begin(start_from, tmp_path, config=None, **settings):
    own = {**QUICK, "output_dir": tmp_path, "start_from": start_from, **settings}
    return ll.train(tiny_lm(), tiny_task(), config, **own)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_the_model_answers_as_with_the_old_adapter_bit_for_bit(tmp_path, config):
    run = ll.train(tiny_lm(), tiny_task(), config, output_dir=tmp_path, **QUICK)
    run.result(60)
    fresh = tiny_lm().model
    start = find_start(run)
    start.attach(fresh, start.config_for(fresh, None), "default")
    assert torch.equal(logits(fresh), logits(run.model))
    assert not torch.equal(logits(fresh), logits(tiny_lm().model))


def test_of_an_initialization_from_the_base_delta_w_is_the_old_one(tmp_path):
    """Its file counts off what it started from, at twice the rank."""
    config = LORA.replace(init_lora_weights="pissa")
    run = ll.train(tiny_lm(), tiny_task(), config, output_dir=tmp_path, **QUICK)
    run.result(60)
    new = begin(run, tmp_path, max_steps=1, save_steps=0)
    new.result(60)
    assert new.config.r == 4
    for name, site in run.adapter.sites.items():
        (A, B), (A0, B0) = (
            [f.detach().double().numpy() for f in pair] for pair in ((site.A, site.B), site.initial)
        )
        expected = np.linalg.svd(1.5 * (B @ A - B0 @ A0), compute_uv=False)[:4]
        found = read_history(new.folder).singular_values(0)[name]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_a_new_run_has_the_old_delta_w_before_its_first_step_and_says_so(old, tmp_path):
    new = begin(old, tmp_path, max_steps=5, per_device_train_batch_size=4)
    assert new.start_from is not None
    result = new.result(60)
    assert [step for step, _ in result.losses] == [1, 2, 3, 4, 5]
    assert new.config == CONFIG
    before, after = (
        read_history(old.folder).singular_values(-1),
        read_history(new.folder).singular_values(0),
    )
    for name, values in before.items():
        assert values[0] > 0
        np.testing.assert_array_equal(after[name], values)
    assert any(
        f"starts from the adapter of run {old.id} after step 3; the optimizer" in note
        for note in new.notes
    )
    (record,) = list_runs(tmp_path)
    assert record.config["start_from"] == {"run": old.id, "step": 3}
    assert record.config["sources"]["start_from"] == str(old.folder / "adapter")
    assert record.start_from == f"run {old.id}, step 3"
    assert new.description()["start_from"] == {"run": old.id, "step": 3}
    card = ll.push_ready(new.model, tmp_path / "hub", run=new)
    assert f"the adapter of run {old.id}" in (card / "README.md").read_text()


def test_a_run_may_be_named_in_every_way(old, tmp_path):
    folder = old.folder
    cut = tmp_path / "20300101-000000-cafe"
    shutil.copytree(folder, cut)
    shutil.copytree(cut / "adapter", cut / "checkpoints" / "step-2")
    (cut / "summary.json").unlink()
    ways = {
        "its folder": find_start(folder),
        "as text": find_start(str(folder)),
        "its id": find_start(old.id, folder.parent),
        "its record": find_start(list_runs(folder.parent)[0]),
        "its adapter": find_start(folder / "adapter"),
    }
    assert {(start.folder, start.run, start.step) for start in ways.values()} == {
        (folder / "adapter", old.id, 3)
    }
    start = find_start(cut)
    assert (start.folder, start.step) == (cut / "checkpoints" / "step-2", 2), "it was cut off"
    assert find_start(start.folder) == start
    shutil.copytree(folder / "adapter", tmp_path / "alone")
    alone = find_start(tmp_path / "alone")
    assert (alone.run, alone.to_dict()) == (None, {"adapter": "alone"})
    assert str(alone) == str(tmp_path / "alone")


def test_what_cannot_be_started_from_is_one_line(old, tmp_path):
    empty = tmp_path / "20300101-000000-beef"
    empty.mkdir()
    (empty / "config.json").write_text((old.folder / "config.json").read_text())
    with pytest.raises(RunError, match="has left no adapter to start from"):
        begin(empty, tmp_path)
    with pytest.raises(RunError, match="there is no run in"):
        begin("20300101-000000-dead", tmp_path)
    running = ll.train(
        tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, **QUICK | {"max_steps": 100_000}
    )
    with pytest.raises(RunError, match="is running; a new run can start from it when it is over"):
        begin(running, tmp_path)
    running.stop()
    running.wait(60)
    before = sorted(tmp_path.iterdir())
    wide = ll.LoadedModel.given(tiny_classifier().model, tiny_lm().tokenizer, "another")
    with pytest.raises(AdapterError, match="the adapter is for another base"):
        find_start(old).config_for(wide.model, None)
    for config, said in (
        (
            CONFIG.replace(r=8),
            r"q_proj\.A is \(4, 32\) there, and \(8, 32\) here; leave",
        ),
        (CONFIG.replace(lora_alpha=4), r"q_proj is scaled by 2 there, 1 here"),
        (CONFIG.replace(target_modules=["q"]), r"k_proj\.A is \(4, 32\) there, and nothing here"),
        (ll.BitFitConfig(new_biases=True), "that is LoRA, and this BitFit"),
    ):
        with pytest.raises(ConfigError, match=said):
            begin(old, tmp_path, config)
    assert sorted(tmp_path.iterdir()) == before, "nothing was made"


def test_settings_that_only_training_reads_may_be_others(old, tmp_path):
    config = CONFIG.replace(lora_dropout=0.1, use_lorafa=True, init_lora_weights="pissa")
    new = begin(old, tmp_path, config, max_steps=1)
    new.result(60)
    assert new.config == config.replace(init_lora_weights=True), "nothing is initialized"
    for name, site in new.adapter.sites.items():
        assert torch.equal(site.A, old.adapter.sites[name].A), "LoRA-FA: A stays"


def test_a_classifiers_head_goes_along(tmp_path):
    run = ll.train(tiny_classifier(), tiny_classes(), LORA, output_dir=tmp_path, **QUICK)
    run.result(60)
    new = ll.train(
        tiny_classifier(seed=0), tiny_classes(), start_from=run, output_dir=tmp_path, start=False
    )
    adapter = new.start_from.attach(new.model, new.config, "default")
    state = run.adapter.state()
    assert any("classifier" in name for name in state)
    assert adapter.state().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapter.state().items())
    assert not any("starts at random" in note for note in new.notes)


def test_cut_off_before_its_first_checkpoint_it_begins_again_from_there(old, tmp_path):
    alone = begin(old, tmp_path / "alone")
    alone.result(60)
    new = begin(old, tmp_path / "cut", save_steps=0, start=False)
    new.store.begin()
    new.store.write_json("config.json", json.loads((alone.folder / "config.json").read_text()))
    new.store.close()
    again = ll.resume(new.folder, tiny_lm(), tiny_task())
    assert again.result(60).losses == alone.losses
    stolen = json.loads((new.folder / "config.json").read_text()) | {"origin": "0" * 64}
    (new.folder / "summary.json").unlink()
    (new.folder / "config.json").write_text(json.dumps(stolen))
    with pytest.raises(RunError, match="is not opened unasked"):
        ll.resume(new.folder, tiny_lm(), tiny_task())


def test_resume_with_other_settings_names_the_way(old):
    with pytest.raises(RunError, match=f"ll.train.lm, task, start_from='{old.id}', max_steps=…"):
        ll.resume(old.folder)
    with pytest.raises(ConfigError, match=f"start_from='{old.id}', max_steps=9. makes a new run"):
        ll.resume(old.folder, max_steps=9)
    with pytest.raises(ConfigError, match="max_step"):
        ll.resume(old.folder, max_step=9)


def test_from_the_command_line_and_a_run_file(tmp_path, capsys):
    recipe = tiny_recipe(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def trained(*more: str) -> dict:
        capsys.readouterr()
        assert main(["train", str(path), *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    first = trained()
    second = trained("--start-from", first["run"])
    recipe["start_from"] = second["folder"]
    del recipe["configs"]
    path.write_text(yaml.safe_dump(recipe))
    third = trained()
    found = {record.id: record.start_from for record in list_runs(tmp_path / "runs")}
    assert found == {
        first["run"]: "",
        second["run"]: f"run {first['run']}, step 4",
        third["run"]: f"run {second['run']}, step 4",
    }
    assert any("starts from the adapter of run" in note for note in third["notes"])
    assert main(["train", third["folder"], "--resume", "--start-from", first["run"]]) == 2
    assert "--start-from begins a new one; use one" in capsys.readouterr().err
    again = json.loads((tmp_path / "runs" / third["run"] / "config.json").read_text())
    assert again["configs"][0]["target_modules"] == ["q", "v"]
    (row,) = [trained("--max-steps", "2", "--learning_rate", "2e-3", "--adam-beta2", "0.95")]
    said = json.loads((tmp_path / "runs" / row["run"] / "config.json").read_text())["training"]
    assert (said["max_steps"], said["learning_rate"], said["adam_beta2"]) == (2, 2e-3, 0.95)
    assert main(["train", str(path), "--max-steps", "many"]) == 2
    assert "max_steps is 'many'" in capsys.readouterr().err
    assert main(["train", third["folder"], "--resume", "--seed", "2"]) == 2
    assert "a resumed run keeps its settings" in capsys.readouterr().err
    copied = tmp_path / "copied.json"
    copied.write_text(json.dumps(again))
    path = copied
    trained()


OTHERS = {
    "LoRA": LORA,
    "BitFit": ll.BitFitConfig(),
    "IA3": ll.IA3Config(),
    "FT": ll.FullConfig(),
    "LoRA+PE": CONFIGS["LoRA+PE"],
}


def three_classes() -> ll.ClassificationTask:
    halves = tiny_classes(12, 6)
    rows = [
        dataclasses.replace(row, label=["one", "two", "three"][number % 3])
        for number, row in enumerate([*halves.train, *halves.validation])
    ]
    return dataclasses.replace(
        halves, labels=("one", "two", "three"), train=rows[:12], validation=rows[12:]
    )


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("to", ["other classes", "a number"])
def test_another_tasks_adapter_comes_without_its_head(tmp_path, config, to):
    """As the paper starts MRPC, RTE and STS-B from MNLI's."""
    first = ll.train(
        tiny_classifier(classes=3), three_classes(), config, output_dir=tmp_path, **QUICK
    )
    first.result(60)
    lm, task = (tiny_classifier(), tiny_classes(12, 6))
    if to == "a number":
        lm, task = tiny_scorer(), tiny_scores(12, 6)
    fresh = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    new = ll.train(lm, task, start_from=first, output_dir=tmp_path, start=False)
    (note,) = [note for note in new.notes if "starts from" in note]
    assert "its head is for 3 " in note
    assert "so that the head here (classifier) begins at random" in note
    adapter = new.start_from.attach(lm.model, new.config, "default")
    old = dict(first.adapter.state())
    taken = 0
    for name, tensor in adapter.state().items():
        if "classifier" in name:
            base = fresh[name.partition("classifier")[1] + name.partition("classifier")[2]]
            assert torch.equal(tensor, base), "as the base model's own head began"
        else:
            assert torch.equal(tensor, old[name])
            taken += 1
    assert taken
    ll.detach(lm.model)
    again = ll.train(lm, task, start_from=first, output_dir=tmp_path, **QUICK)
    assert again.result(60).losses
    learned = [name for name, _ in again.adapter.state().items() if "classifier" in name]
    assert learned, "the head is trained"


def test_classes_in_another_order_are_refused_as_before(tmp_path):
    lm = tiny_classifier()
    lm.model.config.id2label = {0: "early", 1: "late"}
    run = ll.train(lm, tiny_classes(), LORA, output_dir=tmp_path, **QUICK)
    run.result(60)
    turned = tiny_classifier()
    turned.model.config.id2label = {0: "late", 1: "early"}
    with pytest.raises(AdapterError, match="in this order"):
        ll.train(turned, tiny_classes(), start_from=run, output_dir=tmp_path)
