"""What a file may be read as: its layout, or columns that are proposed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks import ClassificationTask, GenerationTask, load_task
from lora_lab.tasks.families.language_modeling import LanguageModelingTask
from lora_lab.tasks.families.regression import RegressionTask
from lora_lab.tasks.proposals import KINDS, propose


def table(path: Path, header: list[str], rows: list[list[str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def asked(n: int) -> str:
    return f"what is number {n} of these"


def said(n: int) -> str:
    return f"it is the one called {n * n}"


def test_a_known_layout_needs_no_columns(tmp_path: Path) -> None:
    name = table(tmp_path / "e2e.csv", ["mr", "ref"], [[asked(n), said(n)] for n in range(30)])
    found = propose(name)
    assert (found.rows, found.columns, found.options, found.problem) == (30, ("mr", "ref"), {}, "")
    assert found.line == "read as E2E (mr, ref)"
    assert found.first == tuple((asked(n), said(n)) for n in range(3))


@pytest.mark.parametrize(
    ("header", "row", "options", "kind"),
    [
        (
            ["id", "Frage", "Antwort"],
            lambda n: [str(n), asked(n), said(n)],
            {"prompt": "Frage", "completion": "Antwort"},
            GenerationTask,
        ),
        (
            ["review", "mood"],
            lambda n: [asked(n), "good" if n % 2 else "bad"],
            {"text": "review", "label": "mood"},
            ClassificationTask,
        ),
        (
            ["molecule", "weight"],
            lambda n: [asked(n), str(n + 0.25)],
            {"text": "molecule", "target": "weight"},
            RegressionTask,
        ),
        (["line"], lambda n: [asked(n)], {"text": "line"}, LanguageModelingTask),
    ],
)
def test_a_proposal_loads_as_what_it_says(tmp_path: Path, header, row, options, kind) -> None:
    name = table(tmp_path / "own.csv", header, [row(n) for n in range(60)])
    found = propose(name)
    assert found.options == options
    assert found.line.startswith("proposed: ")
    assert isinstance(load_task(name, **found.options), kind)
    assert tuple(options) in KINDS.values()


def test_columns_that_were_chosen_are_looked_at(tmp_path: Path) -> None:
    name = table(tmp_path / "own.csv", ["a", "b"], [[asked(n), said(n)] for n in range(30)])
    found = propose(name, options={"prompt": "b", "completion": "a"})
    assert (found.line, found.problem) == ("read as prompt = b, completion = a", "")
    wrong = propose(name, options={"prompt": "b", "completion": "c"})
    assert wrong.line == ""
    assert "has no column 'c'; its columns are a, b" in wrong.problem


def test_a_table_of_numbers_proposes_nothing_and_says_why(tmp_path: Path) -> None:
    name = table(tmp_path / "own.csv", ["a", "b"], [[str(n), str(n * n)] for n in range(30)])
    found = propose(name)
    assert (found.options, found.columns) == ({}, ("a", "b"))
    assert "its columns are a, b" in found.problem


def test_long_values_are_cut_and_empty_ones_are_empty(tmp_path: Path) -> None:
    rows = [["x y " * 500, ""], *([asked(n), said(n)] for n in range(30))]
    found = propose(table(tmp_path / "own.csv", ["a", "b"], rows))
    assert len(found.first[0][0]) == 201
    assert found.first[0][1] == ""


@pytest.mark.parametrize("name", ["no.csv", "./folder", "~/none/at/all"])
def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(TaskError) as refused:
        propose(name)
    assert "\n" not in str(refused.value)


def test_a_saved_folder_of_splits_is_read(tmp_path: Path) -> None:
    import datasets

    rows = {"mr": [asked(n) for n in range(20)], "ref": [said(n) for n in range(20)]}
    split = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict(train=split, validation=split).save_to_disk(tmp_path / "saved")
    found = propose(str(tmp_path / "saved"))
    assert (found.rows, found.columns) == (20, ("mr", "ref"))


def test_a_folder_of_an_official_layout_is_read_as_it_loads(tmp_path: Path) -> None:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    for part, count in (("train", 40), ("dev", 8)):
        rows = [f"{part} {asked(n)}\t{n % 2}" for n in range(count)]
        (folder / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *rows]))
    found = propose(str(folder))
    assert (found.rows, found.columns, found.options) == (40, ("sentence", "label"), {})
    assert found.line == load_task(folder).describe()


@pytest.mark.parametrize("what", ["CoLA", "CoLA/train.tsv"])
def test_colas_files_have_no_line_of_names_here_either(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "CoLA"
    folder.mkdir()
    for part, count in (("train", 40), ("dev", 8)):
        rows = [f"gj04\t{n % 2}\t{'*' * (n % 2)}\t{part} {asked(n)}" for n in range(count)]
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    found = propose(str(tmp_path / what))
    assert (found.rows, found.options, found.problem) == (40, {}, "")
    assert found.first[0] == ("gj04", "0", "", f"train {asked(0)}")
    assert found.line == load_task(tmp_path / what).describe()
