"""A whole checkpoint resumes whatever else in a run's folder is damaged: the rest is a record."""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from lora_lab.checkpoint.locate import locate_adapter
from lora_lab.configs import BitFitConfig, LoraConfig
from lora_lab.errors import RunError
from lora_lab.reports import inspect_adapter
from lora_lab.runs.checkpoints import newest
from lora_lab.runs.history import read_history
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
    "a folder": None,
}


def damage(path: Path, how: str) -> None:
    if DAMAGES[how] is None:
        path.unlink()
        if how == "a folder":
            path.mkdir()
            (path / "mine").write_text("kept")
    else:
        path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(
    "name", ["spectra.npy", "sites.json", "metrics.jsonl", "config.json", "samples.json"]
)
def test_a_damaged_record_costs_itself_alone(cut_off, alone, name, how):
    path, before = cut_off / name, kept_steps(cut_off)
    if not path.exists():
        path.write_text("[]")
    damage(path, how)
    (record,) = list_runs(cut_off.parent)
    record.open()
    with warnings.catch_warnings(record=True) as warned:
        run = resume(record, tiny_lm(), tiny_task())
    losses = run.result(60).losses
    assert losses[-(STEPS - KEPT) :] == alone[KEPT:], "bit for bit from the checkpoint on"
    assert set(losses) <= set(alone)
    if how == "a folder":
        (aside,) = cut_off.glob(f"{name}.*.damaged")
        assert (aside / "mine").read_text() == "kept"
        assert f"is no file; it is {aside.name} now" in str(warned[0].message)
    if name == "metrics.jsonl" and len(losses) < STEPS:
        assert f"metrics.jsonl lacks {STEPS - len(losses)} of the 8 steps before" in run.notes
    if name in ("spectra.npy", "sites.json"):
        said = [note for note in run.notes if note.startswith("the spectra up to step 8 are lost")]
        steps = record.open().history.steps.tolist()
        assert steps[-1] == STEPS
        assert bool(said) is (steps[0] == KEPT), "they begin anew, or none is lost"
        lost = [note for note in run.notes if "were damaged, and are lost" in note]
        assert bool(lost) is (not said and not before <= {*steps}), "some rows are lost, or none"
    if name == "sites.json":
        assert (steps[0], "sites.json was damaged, and is written anew" in run.notes) == (0, True)
    if name == "config.json":
        assert json.loads(path.read_text())["training"]["max_steps"] == STEPS, "it is there again"
        assert any(note.startswith("config.json is not as the run was begun") for note in run.notes)
    assert list_runs(cut_off.parent)[0].state is RecordState.DONE


def kept_steps(folder: Path) -> set[int]:
    """The steps up to its checkpoint whose spectra a run has."""
    return {step for step in read_history(folder).steps.tolist() if step <= KEPT}


TURNED = {  # whole JSON still
    "another rate": ("config.json", "0.01", "0.02"),
    "another type": ("config.json", '"max_steps": 12', '"max_steps": "12"'),
    "another key": ("config.json", '"training"', '"trainang"'),
    "another class": ("config.json", "LoraConfig", "LoraConfih"),
    "another hash": ("config.json", '"data": "', '"data": "0'),
    "another name": ("sites.json", "q_proj", "p_proj"),
    "another width": ("sites.json", '"singular_values": 4', '"singular_values": 5'),
}


@pytest.mark.parametrize("what", TURNED)
def test_a_record_that_says_another_thing_changes_nothing(cut_off, alone, what):
    name, before, after = TURNED[what]
    path, kept = cut_off / name, kept_steps(cut_off)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    run = resume(cut_off, tiny_lm(), tiny_task())
    assert run.result(60).losses == alone
    assert path.read_text() == text
    assert any(note.startswith(f"{name} ") for note in run.notes)
    assert kept_steps(cut_off) == kept


def test_spectra_that_are_lost_in_the_midst_are_told(cut_off):
    path, history = cut_off / "spectra.npy", read_history(cut_off)
    data, size = path.read_bytes(), 4 + 4 * history.values.shape[1]
    at = len(data) - size * (len(history.steps) - 2)  # where the third row begins
    path.write_bytes(data[:at] + bytes(size) + data[at + size :])
    first, last = int(history.steps[1]), max(step for step in history.steps if step <= KEPT)
    run = resume(cut_off, tiny_lm(), tiny_task())
    run.result(60)
    assert f"the spectra of steps {first + 1} to {last} were damaged, and are lost" in run.notes
    assert kept_steps(cut_off) == {*history.steps[:2].tolist()}


def test_an_adapter_is_found_in_a_run_whose_config_is_gone(cut_off):
    (cut_off / "config.json").unlink()
    assert locate_adapter(cut_off).path == cut_off / "checkpoints" / f"step-{KEPT}"
    assert inspect_adapter(cut_off).parameters


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


def turned(data: bytes) -> bytes:
    """One bit of the largest tensor is another; torch.load does not notice."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        tensors = [part for part in archive.infolist() if "/data/" in part.filename]
    at = max(tensors, key=lambda part: part.file_size).header_offset + 200
    return data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [lambda _: b"not a state", turned, None])
def test_a_damaged_newest_checkpoint_is_passed_over_aloud(cut_off, alone, damage):
    whole = cut_off / "checkpoints" / f"step-{KEPT}"
    path = shutil.copytree(whole, whole.with_name("step-9")) / "state.pt"
    torch.save(torch.load(path, weights_only=True) | {"step": 9}, path)
    assert newest(cut_off).step == 9
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    run = resume(cut_off, tiny_lm(), tiny_task())
    assert run.result(60).losses == alone
    assert len(run.steps_before) == KEPT
    said = "the state of checkpoints/step-9 is gone or damaged: the run goes on after step 8"
    assert said in run.notes
