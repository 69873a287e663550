"""A whole checkpoint resumes whatever else in a run's folder is damaged: the rest is a record."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from lora_lab.configs import BitFitConfig, LoraConfig
from lora_lab.errors import RunError
from lora_lab.runs.records import RecordState, list_runs
from lora_lab.training.api import train
from lora_lab.training.resume import resume
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"])
STEPS, KEPT = 12, 8


def begin(folder: Path, config=LORA):
    settings = {"max_steps": STEPS, "learning_rate": 1e-2, "eval_examples": 0, "save_steps": 4}
    return train(tiny_lm(), tiny_task(), config, output_dir=folder, max_length=64, **settings)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses of the run left alone."""
    return begin(tmp_path_factory.mktemp("alone")).result(60).losses


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run's folder as a kill leaves it, after its checkpoint of step 8."""
    run = begin(tmp_path_factory.mktemp("template"))
    until(lambda: run.snapshot.step > KEPT or run.state.final)
    run.stop()
    run.result(60)
    for folder in run.folder.glob("checkpoints/step-*"):
        if folder.name not in ("step-4", f"step-{KEPT}"):
            shutil.rmtree(folder)
    for name in ("summary.json", "adapter"):
        path = run.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return run.folder


@pytest.fixture
def cut_off(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / template.name))


DAMAGES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "zeros behind": lambda data: data[: len(data) // 3] + bytes(len(data) - len(data) // 3),
    "a byte": lambda data: data[:3] + b"\0" + data[4:],
    "another type": lambda data: b"[1, 2]\n",
    "gone": None,
}


def damage(path: Path, how: str) -> None:
    if DAMAGES[how] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(
    "name", ["spectra.npy", "sites.json", "metrics.jsonl", "config.json", "samples.json"]
)
def test_a_damaged_record_costs_itself_alone(cut_off, alone, name, how):
    path = cut_off / name
    if not path.exists():
        path.write_text("[]")
    damage(path, how)
    (record,) = list_runs(cut_off.parent)
    record.open()
    run = resume(record, tiny_lm(), tiny_task())
    losses = run.result(60).losses
    assert losses[-(STEPS - KEPT) :] == alone[KEPT:], "bit for bit from the checkpoint on"
    assert set(losses) <= set(alone)
    if name == "metrics.jsonl" and len(losses) < STEPS:
        assert f"metrics.jsonl lacks {STEPS - len(losses)} of the 8 steps before" in run.notes
    if name in ("spectra.npy", "sites.json"):
        said = [note for note in run.notes if note.startswith("the spectra up to step 8 are lost")]
        steps = record.open().history.steps.tolist()
        assert steps[-1] == STEPS
        assert bool(said) is (steps[0] == KEPT), "they begin anew, or none is lost"
    if name == "config.json":
        assert json.loads(path.read_text())["training"]["max_steps"] == STEPS, "it is there again"
    assert list_runs(cut_off.parent)[0].state is RecordState.DONE


def test_a_run_without_any_config_is_listed_as_damaged_and_says_why(cut_off):
    for path in (cut_off / "config.json", *cut_off.glob("checkpoints/*/run_config.json")):
        os.truncate(path, 10)
    (record,) = list_runs(cut_off.parent)
    assert (record.id, record.state) == (cut_off.name, RecordState.DAMAGED)
    with pytest.raises(RunError, match=r"is damaged: its config\.json cannot be read"):
        resume(record, tiny_lm(), tiny_task())
    assert record.open().losses


def test_a_method_without_spectra_resumes_as_well(tmp_path):
    run = begin(tmp_path, BitFitConfig(new_biases=True))
    until(lambda: run.snapshot.step > KEPT or run.state.final)
    run.stop()
    run.result(60)
    (run.folder / "metrics.jsonl").unlink()
    again = resume(run.folder, tiny_lm(), tiny_task())
    assert again.result(60).losses[-1][0] == STEPS
    assert any(note.startswith("metrics.jsonl lacks") for note in again.notes)
