"""Runs of the version before resume, and open, list and report as they did.

Steps are theirs to rounding: AdamW is one kernel since, as in HF Trainer, which rounds otherwise,
and so does the loss, which is added up over chunks of labels' logits.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lora_lab as ll
from lora_lab.runs.training_config import UNTOLD
from tests.helpers.recorded_before import (
    RECORDED,
    assert_same,
    loaded,
    one_thread,  # noqa: F401 (a fixture)
    read,
    same_bits,
    settings_in,
    tensors_in,
    told,
)

BASES = {"classes-lora": "bert", "classes-adapter-p": "bert", "seq2seq": "t5"}  # others: llama
FOLDERS = {
    "-".join(folder.name.split("-")[2:-1]): folder
    for folder in sorted((RECORDED / "runs").iterdir())
}
NAMES = list(FOLDERS)
# Of a loss that another CPU computes, after ten steps.
ELSEWHERE = 1e-3
ROUNDING = 1e-5  # likewise on a CPU like theirs: float32's, after ten steps
NEWER = {
    f"{name}_{when}"
    for name in ("f1", "macro_f1", "chrf", "exact_match")
    for when in ("before", "after")
}


def copied(folder: Path, parent: Path) -> Path:
    return Path(shutil.copytree(folder, parent / folder.name))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def steps_kept(record: Any) -> list[int] | None:
    """The steps that a run has spectra of; None of a method without ΔW."""
    history = record.open().history
    return None if history is None else history.steps.tolist()


def assert_as_recorded(folder: Path, name: str, known: int = 0) -> None:
    """A run that is over came to what the version before came to.

    Where `same_bits` says that this machine has other bits, losses and scores are compared as
    numbers; the order of the data and the schedule are compared exactly anywhere.

    Args:
        known: so many of its steps are the recording's own.
    """
    finished = RECORDED / "finished" / FOLDERS[name].name
    rows, recorded = rows_of(folder), rows_of(finished)
    assert rows[:known] == recorded[:known]
    there, before = (
        {path.name for path in one.iterdir()} - {"checkpoints"} for one in (folder, finished)
    )
    assert there == before
    losses = [row.pop("loss") for row in rows], [row.pop("loss") for row in recorded]
    assert rows == recorded, "steps, learning rates, tokens"
    summary, before = (json.loads((one / "summary.json").read_text()) for one in (folder, finished))
    # Runs that end at chance, as some of these, are told so since.
    changing = ("seconds", "peak_memory", *([] if before["notes"] else ["notes"]))
    assert summary["notes"] == [] or before["notes"] or "chance" in summary["notes"][-1]
    assert_same(summary, {k: v for k, v in before.items() if k not in (*changing, "metrics")})
    assert summary.keys() >= {*changing, "metrics"}
    # Some metrics are newer than the recordings; all that they hold is there, and is the same.
    newer = {key: summary["metrics"].pop(key) for key in NEWER & summary["metrics"].keys()}
    assert summary["metrics"].keys() == before["metrics"].keys()
    assert all(0 <= value <= 100 for value in newer.values())
    own, others = tensors_in(folder / "adapter"), tensors_in(finished / "adapter")
    assert {k: (v.shape, v.dtype) for k, v in own.items()} == {
        k: (v.shape, v.dtype) for k, v in others.items()
    }
    if same_bits():
        assert losses[0][:known] == losses[1][:known]
        assert losses[0] == pytest.approx(losses[1], rel=ROUNDING)
        assert summary["metrics"] == pytest.approx(before["metrics"], rel=ROUNDING)
        for name, tensor in own.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=ROUNDING)
        assert json.loads((folder / "samples.json").read_text()) == json.loads(
            (finished / "samples.json").read_text()
        )
    else:
        assert losses[0] == pytest.approx(losses[1], rel=ELSEWHERE)
        for key in ("loss_before", "loss_after"):
            if key in before["metrics"]:
                expected = pytest.approx(before["metrics"][key], rel=ELSEWHERE)
                assert summary["metrics"][key] == expected


def test_this_machine_computes_the_bits_of_the_recordings() -> None:
    """Skipped, and so told, where it does not: the tests below then compare numbers."""
    if not same_bits():
        pytest.skip(f"other bits here: recorded runs are compared to {ELSEWHERE:g} of a loss")


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_run_goes_on_as_the_version_before_did(name: str, tmp_path: Path) -> None:
    folder = copied(FOLDERS[name], tmp_path)
    (record,) = ll.runs(tmp_path)
    stopped = (FOLDERS[name] / "summary.json").exists()
    assert record.state == ("stopped" if stopped else "cut off")
    assert len(rows_of(folder)) == (6 if stopped else 7)
    known = max(record.open().checkpoints, default=0)
    kept = [step for step in steps_kept(record) or () if step <= known]
    assert known == {True: 6, False: 0 if name == "no-checkpoint" else 4}[stopped]
    run = ll.resume(record, *loaded(BASES.get(name, "llama")))
    assert run.result(60).losses[:known] == run.steps_before
    assert len(run.steps_before) == known
    assert_as_recorded(folder, name, known)
    (record,) = ll.runs(tmp_path)
    assert record.state == "done"
    recorded = read("finished/opened.json")[record.id]["spectra"]
    assert (recorded is None) is (steps_kept(record) is None)
    if recorded is not None:
        steps = steps_kept(record)
        assert steps[: len(kept)] == kept
        assert steps[-1] == 10
        last = record.open().history.singular_values(len(steps) - 1)
        found = {name: values.tolist() for name, values in last.items()}
        assert_same(found, recorded, rel=1e-4 if same_bits() else 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_begun_anew_comes_to_what_was_recorded(name: str, tmp_path: Path) -> None:
    lm, task = loaded(BASES.get(name, "llama"))
    config = json.loads((FOLDERS[name] / "config.json").read_text())
    methods = [
        getattr(ll, values["class"])(**{k: v for k, v in values.items() if k != "class"})
        for values in config["configs"]
    ]
    method = methods if len(methods) > 1 else methods[0]
    then = {**UNTOLD, "kept_texts": 0, **config["training"]}  # it was not measured then
    run = ll.train(lm, task, method, output_dir=tmp_path, name=name, **then)
    run.result(60)
    assert_as_recorded(run.folder, name)
    told_now = json.loads((run.folder / "config.json").read_text())
    assert told_now["training"] == then
    told_now["training"] = config["training"]
    changing = ("id", "model", "versions", "sources", "origin")
    assert_same(told_now, {k: v for k, v in config.items() if k not in changing})
    assert told_now.keys() >= set(changing)
    if (FOLDERS[name] / "sites.json").exists():
        sites = [path / "sites.json" for path in (run.folder, FOLDERS[name])]
        assert_same(*(json.loads(path.read_text()) for path in sites), rel=1e-5)
        spectra = [np.load(path / "spectra.npy") for path in (run.folder, FOLDERS[name])]
        assert spectra[0].shape[1:] == spectra[1].shape[1:]
        assert spectra[0].dtype == spectra[1].dtype


# A run of one's own -------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the models, the data, and a run that the key in the cache has signed."""
    for part in ("models", "data"):
        (tmp_path / part).symlink_to(RECORDED / part, target_is_directory=True)
    copied(FOLDERS["own"], tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "origin.key").write_bytes(bytes(range(32)))
    return tmp_path


def test_ones_own_run_goes_on_without_model_and_task(home, capsys):
    folder = home / "runs" / FOLDERS["own"].name
    found = told(capsys, "train", folder, "--resume")
    recorded = read("cli/train.json")
    changing = {"folder": str(folder), "adapter": str(folder / "adapter"), "seconds": None}
    assert {**found, **changing, "metrics": {}} == {**recorded, **changing, "metrics": {}}
    assert_as_recorded(folder, "own", known=6)


def test_its_config_is_a_run_file(home, capsys):
    path = home / "runs" / FOLDERS["own"].name / "config.json"
    found = told(capsys, "train", path, "--output-dir", home / "again")
    assert_as_recorded(Path(found["folder"]), "own")


def test_under_another_key_its_files_are_not_opened_unasked(home):
    (home / "cache" / "origin.key").write_bytes(bytes(32))
    with pytest.raises(ll.LoraLabError, match="was not begun by your LoRA Lab"):
        ll.resume(FOLDERS["own"].name, output_dir="runs")


# Finished -----------------------------------------------------------------------------------------


def test_finished_runs_are_listed_and_open_as_they_did():
    recorded = read("finished/opened.json")
    records = ll.runs(RECORDED / "finished")
    assert [record.id for record in records] == sorted(recorded, reverse=True)
    for record in records:
        assert record.state == "done"
        opened, before = record.open(), recorded[record.id]
        assert [list(pair) for pair in opened.losses] == before["losses"]
        assert opened.metrics == before["metrics"]
        assert list(opened.checkpoints) == before["checkpoints"]
        assert opened.adapter_folder == record.folder / "adapter"
        assert steps_kept(record) == before["steps"]
        if opened.history is not None:
            last = opened.history.singular_values(len(before["steps"]) - 1)
            assert {name: values.tolist() for name, values in last.items()} == before["spectra"]


@pytest.mark.parametrize("name", NAMES)
def test_the_adapters_of_runs_load_and_are_written_again_as_they_were(name, tmp_path):
    folder = RECORDED / "finished" / FOLDERS[name].name / "adapter"
    lm, _ = loaded(BASES.get(name, "llama"))
    ll.load_adapter(lm.model, folder)
    again = ll.save_adapter(lm.model, tmp_path / "again")
    own, others = tensors_in(again), tensors_in(folder)
    assert own.keys() == others.keys()
    assert [k for k, tensor in own.items() if not torch.equal(tensor, others[k])] == []
    assert settings_in(again).keys() - {"classes.json"} == settings_in(folder).keys()


def test_a_page_is_written_of_a_recorded_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(RECORDED)
    run = Path("finished") / FOLDERS["rslora"].name
    page = tmp_path / "page.html"
    found = told(capsys, "inspect", run, "--base", "models/llama", "--report", page)
    assert found["report"] == str(page)
    text = page.read_text(encoding="utf-8")
    assert "model.layers.1.mlp.down_proj" in text
    assert text.count("<h2") >= 3


# A sweep ------------------------------------------------------------------------------------------


def test_a_recorded_sweep_has_the_same_cells_and_trains_none_of_them_again(
    home, capsys, monkeypatch
):
    shutil.copytree(RECORDED / "sweeps", home / "sweeps")
    shutil.copy(RECORDED / "sweep.yaml", home)
    before = visible(home / "sweeps" / "ranks")
    found, recorded = told(capsys, "sweep", "sweep.yaml"), read("cli/sweep.json")
    assert found.pop("folder") == str(home / "sweeps" / "ranks")
    del recorded["folder"]
    assert_same(found, recorded)
    assert visible(home / "sweeps" / "ranks") == before


def visible(folder: Path) -> list[str]:
    """Return the names in a folder; locks have a dot before theirs."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_cells_of_a_sweep_planned_anew_are_the_recorded_ones(home, capsys):
    text = (RECORDED / "sweep.yaml").read_text()
    # The warm-up and the order that it had by default then.
    then = "training: {warmup_steps: 5, train_sampling_strategy: random, init_draws: one_stream, "
    (home / "sweep.yaml").write_text(text.replace("training: {", then))
    found, recorded = told(capsys, "sweep", "sweep.yaml"), read("cli/sweep.json")
    told_of = ("cell", "changes", "state", "steps")
    for one, other in zip(found["cells"], recorded["cells"], strict=True):
        assert [one[key] for key in told_of] == [other[key] for key in told_of]
        assert one["metrics"]["loss_after"] == pytest.approx(
            other["metrics"]["loss_after"], rel=ROUNDING if same_bits() else ELSEWHERE
        )


def test_runs_of_a_sweep_are_listed_beside_it():
    ids = {record.id for record in ll.runs(RECORDED / "sweeps")}
    assert ids == {f"ranks/{cell['run']}" for cell in read("cli/sweep.json")["cells"]}
