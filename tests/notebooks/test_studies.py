"""The studies show what was kept of them, at once; what is kept says where it comes from."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

import lora_lab as ll
from lora_lab import spectra
from lora_lab.analysis import Choices, MethodChoice, OverlapMap, compare_methods, sweep_map
from tests.helpers.tiny_run import tiny_lm, tiny_task

FOLDER = Path(__file__).parents[2] / "notebooks" / "studies"
PLOTLY = "application/vnd.plotly.v1+json"
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


def run_cell(source, own):
    """Run a cell; return what its last line gives, None where that is no expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), own)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), own)


def shown(value):
    """Return how a page shows a value: as Markdown or as HTML."""
    return value._repr_markdown_() if hasattr(value, "_repr_markdown_") else value._repr_html_()


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
            value = run_cell(cell.source, own)
            for output in cell.outputs:
                if "data" in output and PLOTLY not in output.data:
                    assert shown(value) in output.data.values(), cell.id
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


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_committed_small_and_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run it from top to bottom"
    assert "widgets" not in notebook.metadata
    assert path.stat().st_size < 300_000


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
    said = capsys.readouterr().out
    assert "seeds 0, 1" in said
    assert "resumed" not in said
    (study.HERE / "runs" / "some").mkdir(parents=True)
    (study.HERE / "runs" / "some" / "run").touch()
    study.kept_runs("some", lambda: there, True, [0, 1])
    assert "minutes of it (its last stretch: it was resumed), seeds" in capsys.readouterr().out
    assert str(tmp_path) not in (tmp_path / "results" / "some.json").read_text()


def test_comparisons_are_kept_as_they_were_found(study, capsys):
    curve = {1e-3: (2.5, 2.25), 1e-2: (1.5, 1.25)}
    ends = {"loss": ((1.25, 2.25), (1.0, 2.0))}
    more = {"seconds": 2.5, "peak_memory": 7, "checkpoint_bytes": 9, "intervals": ends}
    rows = (
        MethodChoice("LoRA", "r = 8", 16, 100, curve, 1e-2, (1.75, 1.5), **more, kept=(2.0, 2.5)),
        MethodChoice("FT", "", 16, 900, {1e-4: (2.0, 2.0)}, 1e-4, (2.25, 2.5)),
    )
    told = {"base_scores": {"loss": 3.0}, "base_intervals": {"loss": (2.5, 3.5)}}
    there = Choices("loss", "m", "t", 50, 49, rows, 3.0, "two seeds", "nats per token", **told)
    redone = study.kept_choices("some", lambda: there, True, [0, 1])
    kept = study.kept_choices("some", pytest.fail, False, [0, 1])
    for found in (redone, kept):
        assert found == there
        assert str(found) == str(there)
    assert "seeds 0, 1" in capsys.readouterr().out


def test_a_difference_is_one_that_the_spread_carries(study):
    def row(name, *values):
        return MethodChoice(name, "", 8, 100, {1e-2: values}, 1e-2, values)

    # Welch's intervals of these, by a table of t: -9 ± 2.776 · √(2/3) and -1 ± the same.
    near, far = row("B", 2.0, 3.0, 4.0), row("C", 10.0, 11.0, 12.0)
    own = row("A", 1.0, 2.0, 3.0)
    for other, told in (
        (far, "carries the difference (95 % interval 6.73 to 11.3)."),
        (near, "does not carry the difference (95 % interval -3.27 to 1.27)."),
    ):
        assert study.against(own, other).endswith(f"the spread {told}")
    assert study.against(row("D", 1.0), near).endswith("of one seed there is no spread.")


def test_overlaps_are_kept_small(study):
    rng = np.random.default_rng(0)
    first, second = (np.linalg.qr(rng.normal(size=(48, 40)))[0] for _ in range(2))
    values = spectra.subspace_overlap(first, second).astype(np.float32)
    random, spread = (np.zeros_like(values) for _ in range(2))
    whole = OverlapMap("q", "r = 40", "r = 40", "input", values, random, spread, 48)
    kept = study.overlap_map(json.loads(json.dumps(study.packed_overlap(whole, most=32))))
    np.testing.assert_allclose(kept.values, values[:32, :32], atol=5.1e-4)
    i, j = np.indices((32, 32)) + 1
    np.testing.assert_allclose(kept.random, np.maximum(i, j) / 48)
    for name in ("site", "first", "second", "side", "n", "note"):
        assert getattr(kept, name) == getattr(whole, name)
    narrow = dataclasses.replace(whole, values=values[:8])
    assert study.overlap_map(study.packed_overlap(narrow, most=32)).values.shape == (8, 40)


def test_what_runs_share_is_kept_once_at_any_depth(study):
    first = {"training": {"rate": 1, "seed": 0, "steps": 5}, "model": "a", "own": {"x": 1}}
    second = {"training": {"rate": 2, "seed": 0, "steps": 5}, "model": "a", "own": None}
    shared = study._shared([first, second])
    assert shared == {"training": {"seed": 0, "steps": 5}, "model": "a"}
    for whole in (first, second):
        left = study._without(whole, shared)
        assert study._joined(json.loads(json.dumps(shared)), json.loads(json.dumps(left))) == whole


def test_a_figure_has_means_and_spreads(study):
    drawn = study.spread_figure({"a": {4: [1.0, 3.0], 1: [5.0]}}, "x", "y", base=2.0)
    (line,) = drawn.data
    assert (list(line.x), list(line.y)) == ([1, 4], [5.0, 2.0])
    assert list(line.error_y.array) == pytest.approx([0.0, 2**0.5])
    assert list(drawn.layout.xaxis.ticktext) == ["1", "4"]


def test_no_two_lines_of_a_figure_look_alike(study):
    drawn = study.spread_figure({str(n): {1: [1.0]} for n in range(15)}, "x", "y")
    assert len({(own.line.color, own.line.dash) for own in drawn.data}) == len(drawn.data) == 15


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_saved_figures_can_be_read_on_a_dark_page(path):
    cells = nbformat.read(path, as_version=4).cells
    shown = [o.data for c in cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    for figure in (own[PLOTLY] for own in shown if PLOTLY in own):
        layout = figure["layout"]
        color = layout.get("paper_bgcolor") or layout["template"]["layout"]["paper_bgcolor"]
        assert color in ("white", "#ffffff")
