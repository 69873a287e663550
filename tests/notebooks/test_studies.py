"""The studies show what was kept of them, at once; what is kept says where it comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

import lora_lab as ll
from lora_lab.analysis import compare_methods, sweep_map
from tests.helpers.tiny_run import tiny_lm, tiny_task

FOLDER = Path(__file__).parents[2] / "notebooks" / "studies"
STUDIES = sorted(FOLDER.glob("*.ipynb"))
SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "save_steps": 0, "eval_examples": 4}


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The studies' helper, with a folder of its own."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import study

    monkeypatch.setattr(study, "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    return study


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_shows_what_was_kept(path, monkeypatch, capsys):
    monkeypatch.chdir(FOLDER)
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("load_model", "train", "sweep", "compare"):
        monkeypatch.setattr(ll, name, lambda *_, **__: pytest.fail("it trains"))
    cells = nbformat.read(path, as_version=4).cells
    own: dict = {}
    for cell in cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, path.name, "exec"), own)
    assert own["REDO"] is False
    assert "REDO = True computes it anew" in capsys.readouterr().out
    first = cells[0].source
    assert "**Published.**" in first
    assert "**Here.**" in first


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_what_a_study_says_in_the_end_is_what_it_shows(path):
    cells = nbformat.read(path, as_version=4).cells
    shown = str([cell.outputs for cell in cells if cell.cell_type == "code"])
    told = [cell.source for cell in cells[2:] if cell.cell_type == "markdown"]
    numbers = re.findall(r"\d+\.?\d* ± \d+\.?\d*(?:e-\d+)?", "\n".join(told))
    assert [number for number in numbers if number not in shown] == []


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda p: p.stem)
def test_what_is_kept_is_small_and_says_where_it_comes_from(path):
    assert path.stat().st_size < 400_000
    about = json.loads(path.read_text())["about"]
    assert {"processor", "cores", "torch", "seeds", "seconds", "date"} <= about.keys()
    assert about["seconds"] <= 15 * 60
    assert "/" not in json.dumps(about)


def test_runs_are_kept_as_they_are_on_the_disk(study, tmp_path, capsys):
    def train():
        grid, own = {"r": [1, 2], "seed": [0, 1]}, {"output_dir": tmp_path, **SHORT}
        made = ll.sweep(tiny_lm(), tiny_task(), ll.LoraConfig(), grid=grid, **own)
        made.results()
        return made.records()

    there = train()
    redone = study.kept_runs("some", lambda: there, True, [0, 1])
    kept = study.kept_runs("some", pytest.fail, False, [0, 1])
    for runs in (redone, kept):
        assert str(compare_methods(runs)) == str(compare_methods(there))
        assert sweep_map(runs).values.tolist() == sweep_map(there).values.tolist()
    assert "seeds 0, 1" in capsys.readouterr().out
    assert str(tmp_path) not in (tmp_path / "results" / "some.json").read_text()


def test_a_figure_has_means_and_spreads(study):
    drawn = study.spread_figure({"a": {4: [1.0, 3.0], 1: [5.0]}}, "x", "y", base=2.0)
    (line,) = drawn.data
    assert (list(line.x), list(line.y)) == ([1, 4], [5.0, 2.0])
    assert list(line.error_y.array) == pytest.approx([0.0, 2**0.5])
