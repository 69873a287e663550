"""`lora-lab compare`: a comparison trained from a file, told, gone on with, on Ray and reported."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from lora_lab.cli import main
from lora_lab.sweeps import cluster
from lora_lab.sweeps.compare_plan import ComparePlan
from lora_lab.sweeps.local import told as told_of
from lora_lab.sweeps.store import SweepStore
from tests.core.sweeps.test_compare_plan import METHODS, written
from tests.helpers.peft_processing import load_df


def told(capsys, *arguments, status=0):
    capsys.readouterr()
    assert main(["compare", *map(str, arguments), "--json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison that has been trained."""
    folder = tmp_path_factory.mktemp("compare")
    path = written(folder, methods=[METHODS[0], METHODS[2]], rates=[1e-4, 1e-3])
    assert main(["compare", str(path)]) == 0
    return path


def test_people_get_the_table_and_what_follows_from_it(compared, capsys):
    assert main(["compare", str(compared)]) == 0  # nothing is trained again
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["examples", "method"]
    assert [line.split()[1] for line in lines[1:3]] == ["LoRA", "FT"]
    assert "has the best held-out loss" in out
    assert "2 learning rates a method; five or more make a curve" in out


def test_the_json_is_the_comparisons_own(compared, capsys):
    found = told(capsys, compared)
    made = ComparePlan.read(compared).comparison()
    assert found == json.loads(json.dumps(made.choices().to_json()))
    assert {row["method"]: len(row["values"]) for row in found["rows"]} == {"LoRA": 2, "FT": 2}


def test_on_ray_the_same_cells_are_trained_and_nothing_more_here(
    compared, tmp_path, capsys, monkeypatch
):
    path = written(tmp_path, methods=[METHODS[0], METHODS[2]], rates=[1e-4, 1e-3])
    asked = []

    def on_ray(part, address, gpus):
        asked.append((part.size, address, gpus))
        store, sent = SweepStore(part.folder), pickle.loads(pickle.dumps(part))
        store.begin(told_of(*part.load()), part.cells())
        # What each worker does with what is sent to it.
        return {cell.id: cluster._train_one(cell, sent, store, 0) for cell in sent.cells()}

    monkeypatch.setattr("lora_lab.cli.compare.sweep_on_ray", on_ray)
    theirs = told(capsys, path, "--ray", "auto", "--gpus", "0.5")
    ours = told(capsys, compared)
    assert [(address, gpus) for _, address, gpus in asked] == [("auto", 0.5)]
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert (mine["values"], mine["curve"]) == (other["values"], other["curve"])


def test_the_report_is_one_page_with_curves_and_fronts(compared, tmp_path, capsys):
    page = tmp_path / "new" / "report.html"
    assert told(capsys, compared, "--report", page)["report"] == str(page)
    text = page.read_text("utf-8")
    assert "Learning rates" in text
    assert "Against trainable parameters" in text
    assert "Against peak memory" in text
    assert "has the best held-out loss" in text


def test_the_runs_go_to_pefts_layout(compared, capsys):
    found = told(capsys, compared, "--export", "peft-comparison")
    assert len(found["exported"]) == 8
    frame = load_df(Path(found["exported"][0]).parent, "MetaMathQA")
    assert set(frame["peft_type"]) == {"LORA", "full-finetuning"}
    assert len(frame) == 8


def test_a_file_that_cannot_be_is_one_line(tmp_path, capsys):
    path = written(tmp_path, seeds=0)
    capsys.readouterr()
    assert main(["compare", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    line = "there is nothing to compare; give one or more methods and seeds"
    assert err == f"lora-lab: {path}: {line}\n"
