"""Runs in PEFT's layout, read by PEFT's own code: every number is the run's."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

import pytest
import yaml

import lora_lab as ll
from lora_lab.cli import main
from lora_lab.errors import RunError
from lora_lab.runs.records import list_runs
from lora_lab.sweeps.peft_comparison import export_peft_comparison
from tests.helpers.ended_runs import record
from tests.helpers.peft_processing import compute_pareto_frontier, get_metric_preferences, load_df
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_files import tiny_recipe

CONFIGS = [
    {"class": "LoraConfig", "r": 2, "target_modules": ["q", "v"]},
    {"class": "LoraConfig", "r": 2, "lora_alpha": 64, "target_modules": ["q", "v"]},
    {"class": "BottleneckConfig", "variant": "H", "r": 2},
    {"class": "FullConfig"},
    [
        {"class": "LoraConfig", "r": 2, "target_modules": ["q"]},
        {"class": "PrefixEmbedConfig", "prefix_length": 2, "infix_length": 0},
    ],
]


def swept(folder: Path, **changes) -> Path:
    values = {**tiny_recipe(folder), "name": "all", "grid": {"configs": CONFIGS, "seed": [0, 1]}}
    values |= changes
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the folder of a sweep, the folder of its files)."""
    folder = tmp_path_factory.mktemp("exported")
    assert main(["sweep", str(swept(folder)), "--export", "peft-comparison"]) == 0
    return folder / "runs" / "all", folder / "runs" / "all" / "peft-comparison"


def test_pefts_own_code_reads_every_run_once(exported):
    folder, files = exported
    frame = load_df(files, "MetaMathQA")
    runs = {run.config["id"]: run for run in list_runs(folder)}
    assert len(frame) == len(runs) == 10
    assert frame["experiment_name"].is_unique
    assert set(frame["peft_type"]) == {"LORA", "full-finetuning", "ADAPTER^H", "LORA+PE"}
    assert sorted(frame["num_trainable_params"]) == sorted(
        run.summary["trainable"] for run in runs.values()
    )
    assert sorted(frame["test_accuracy"]) == sorted(
        run.summary["metrics"]["exact_match_after"] / 100 for run in runs.values()
    )
    assert set(frame["train_samples"]) == {4 * 4}
    preferences = get_metric_preferences("MetaMathQA")
    front = compute_pareto_frontier(frame, "file_size", "train_loss", preferences)
    assert 0 < len(front) < 10


def test_every_number_is_the_runs_own(exported):
    folder, files = exported
    of_name = {}
    for path in files.glob("*.json"):
        found = json.loads(path.read_text())
        assert path.name == found["run_info"]["experiment_name"].replace("/", "--") + ".json"
        key = found["train_info"]["num_trainable_params"], found["run_info"]["train_config"]["seed"]
        of_name.setdefault(key, []).append(found)
    for run in list_runs(folder):
        key = run.summary["trainable"], run.config["training"]["seed"]
        alpha = run.config["configs"][0].get("lora_alpha")
        (found,) = (
            own for own in of_name[key]
            if alpha is None or (own["run_info"]["peft_config"] or {}).get("peft_type") != "LORA"
            or own["run_info"]["peft_config"]["lora_alpha"] == alpha
        )  # fmt: skip
        told, took = found["run_info"], found["train_info"]
        assert took["train_time"] == run.summary["seconds"]
        assert took["accelerator_memory_max"] == run.summary["peak_memory"]
        assert took["file_size"] == run.summary["checkpoint_bytes"]
        card = run.config["model"]
        added = 0 if run.config["method"] == "FT" else took["num_trainable_params"]
        assert took["num_total_params"] == card["parameters"] + added
        if run.config["method"] == "FT":  # as PEFT's own file of it has it
            assert took["num_trainable_params"] == took["num_total_params"]
        rows = [row for row in run.open().rows if "loss" in row]
        assert took["metrics"][-1]["train loss"] == rows[-1]["loss"]
        assert took["metrics"][-1]["train total tokens"] == sum(row["tokens"] for row in rows)
        rise = (
            run.summary["metrics"]["kept_loss_after"] - run.summary["metrics"]["kept_loss_before"]
        )
        assert took["metrics"][-1]["forgetting"] == rise
        assert told["train_config"]["optimizer_kwargs"]["lr"] == 2e-3
        assert datetime.fromisoformat(told["created_at"]).utcoffset().total_seconds() == 0
        assert told["notes"][0] == "test accuracy is exact match, held-out"


def test_a_models_name_in_letters_of_three_bytes_is_cut_to_what_a_file_may_be_called(tmp_path):
    run = dataclasses.replace(record(accuracy_after=50.0), folder=Path("20260101-000000-a"))
    run.config["model"]["name"] = "模型" * 60
    (file,) = export_peft_comparison([run], tmp_path)
    assert len(file.name.encode()) <= 255
    assert file.name.startswith("lora--模型")


def test_a_task_with_classes_has_its_accuracy(tmp_path):
    short = {"max_steps": 2, "save_steps": 0, "eval_examples": 8}
    sweep = ll.sweep(
        tiny_classifier("bert"), tiny_classes(24, 8), ll.LoraConfig(r=2),
        grid={"learning_rate": [1e-3, 1e-2]}, output_dir=tmp_path, **short,
    )  # fmt: skip
    sweep.results(120)
    files = export_peft_comparison(sweep.records(), tmp_path / "new" / "files")
    frame = load_df(tmp_path / "new" / "files", "MetaMathQA")
    assert len(files) == len(frame) == 2
    assert sorted(frame["test_accuracy"]) == sorted(
        run.summary["metrics"]["accuracy_after"] / 100 for run in sweep.records()
    )


@pytest.mark.parametrize(
    ("metric", "score", "label"),
    [("matthews", -12.5, "Matthews"), ("cider", 240.0, "CIDEr"), ("spearman", -100.0, "Spearman")],
)
def test_a_score_that_is_no_share_is_written_as_it_is_and_said(tmp_path, metric, score, label):
    """One such run does not stop the others' export; PEFT's own code reads it."""
    runs = [
        dataclasses.replace(record(training={"seed": seed}, **{f"{metric}_after": value}), id=name)
        for seed, (name, value) in enumerate({"a": score, "b": 40.0}.items())
    ]
    runs = [
        dataclasses.replace(run, folder=Path(f"20260101-00000{i}-{run.id}"))
        for i, run in enumerate(runs)
    ]
    files = export_peft_comparison(runs, tmp_path)
    frame = load_df(tmp_path, "MetaMathQA")
    assert sorted(frame["test_accuracy"]) == sorted([score / 100, 0.4])
    notes = [json.loads(path.read_text())["run_info"]["notes"] for path in files]
    odd = [any("is no share of answers" in line and label in line for line in own) for own in notes]
    assert odd == [True, False]


def test_what_has_no_right_answers_is_refused_before_it_is_trained(tmp_path, capsys):
    path = swept(tmp_path)
    values = yaml.safe_load(path.read_text())
    values["training"]["eval_examples"] = 0
    path.write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert main(["sweep", str(path), "--export", "peft-comparison"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "lora-lab: eval_examples is 0, and PEFT's layout has a test accuracy; leave --export out\n"
    )
    assert not (tmp_path / "runs").exists()


def test_runs_that_are_none_or_tell_nothing_are_one_line(tmp_path):
    with pytest.raises(RunError, match="no run has come to its end"):
        export_peft_comparison([record(state="failed")], tmp_path / "files")
    with pytest.raises(RunError, match="run id has no score of its answers, which PEFT"):
        export_peft_comparison([record()], tmp_path / "files")
    assert not (tmp_path / "files").exists()
