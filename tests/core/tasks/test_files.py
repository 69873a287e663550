"""Which files a name stands for, and several files as one part of a task."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_lab.errors import TaskError
from lora_lab.tasks.files import absolute, find_files, is_file_name, title
from lora_lab.tasks.load import load_task
from lora_lab.tasks.sources import task_source

COLUMNS: dict[str, Any] = {"prompt": "p", "completion": "c"}


def write(path: Path, *rows: tuple[str, str], names: str = "p,c") -> Path:
    path.write_text("".join(f"{line}\n" for line in (names, *map(",".join, rows))))
    return path


def pairs(task: Any) -> set[tuple[str, str]]:
    return {(e.prompt, e.completion) for e in (*task.train, *task.validation)}


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / f"part-{n}.csv", (f"a{n}", f"x{n}"), (f"b{n}", f"y{n}")) for n in range(3)
    ]


ALL = {(f"{p}{n}", f"{c}{n}") for n in range(3) for p, c in ("ax", "by")}


def test_several_files(parts: list[Path]) -> None:
    task = load_task(parts, **COLUMNS)
    assert pairs(task) == ALL
    assert task.name == "part-0.csv, part-1.csv, part-2.csv"
    assert pairs(load_task([*map(str, parts[:2])], **COLUMNS)) < ALL
    jsonl = parts[0].with_name("more.jsonl")
    jsonl.write_text(json.dumps({"c": "of JSON", "p": "1"}))
    task = load_task((parts[0], jsonl), **COLUMNS)
    assert pairs(task) == {("a0", "x0"), ("b0", "y0"), ("1", "of JSON")}


@pytest.mark.parametrize("pattern", ["part-*.csv", "*.csv", "**/part-*", "*"])
def test_a_pattern(parts: list[Path], pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = load_task(str(parts[0].parent / pattern), **COLUMNS)
    assert pairs(task) == ALL
    assert task.name == Path(pattern).name


@pytest.mark.parametrize("pattern", ["part-?.csv", "part-[012].csv"])
def test_a_pattern_that_might_be_a_name_says_what_it_stands_for(
    parts: list[Path], pattern: str
) -> None:
    """Shells and pandas users write such patterns; a name with brackets may be mistyped."""
    with pytest.warns(UserWarning, match=r"as a pattern it stands for part-0\.csv, part-1\.csv"):
        task = load_task(parts[0].with_name(pattern), **COLUMNS)
    assert pairs(task) == ALL


def test_held_out_parts_of_several_files(parts: list[Path]) -> None:
    task = load_task(
        parts[0], validation=parts[1:], test=str(parts[0].with_name("part-[12]*.csv")), **COLUMNS
    )
    assert {e.prompt for e in task.train} == {"a0", "b0"}
    assert {e.prompt for e in task.validation} == {"a1", "b1", "a2", "b2"}
    assert [e.prompt for e in task.test] == ["a1", "b1", "a2", "b2"]


def test_where_it_came_from_is_noted_as_the_files_that_were_read(
    parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(parts[0].parent)
    files = list(map(str, parts))
    for name in ("part-*.csv", [p.name for p in parts]):
        task = load_task(name, **COLUMNS)
        source = task_source(task)
        assert source == {"name": files, **COLUMNS}
        assert load_task(**source).train == task.train


def test_a_row_is_named_by_its_own_file(parts: list[Path]) -> None:
    broken = write(parts[0].with_name("broken.csv"), ("ok", "1"), ("bad", ""))
    with pytest.raises(TaskError, match=r"broken\.csv: row 2 \('bad'\) has no class"):
        load_task([*parts, broken], text="p", label="c")
    with pytest.raises(TaskError, match=r"broken\.csv: row 2 has 'z' in column 'c', which is no"):
        load_task([write(broken, ("ok", "1"), ("bad", "z"))], text="p", target="c")


def test_a_file_without_the_column_is_named(parts: list[Path]) -> None:
    other = write(parts[0].with_name("other.csv"), ("q", "r"), names="p,answer")
    with pytest.raises(TaskError, match=r"other\.csv has no column 'c'; its columns are p, answer"):
        load_task([*parts, other], **COLUMNS)


def test_columns_of_numbers_in_some_of_the_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.parquet", tmp_path / "b.jsonl"
    parquet.write_table(pa.table({"t": ["a", "b"], "y": [1.0, 2.0]}), first)
    second.write_text('{"t": "c", "y": null}\n')
    with pytest.raises(TaskError, match=r"b\.jsonl: row 1 \('c'\) has no class"):
        load_task([first, second], text="t", label="y")
    parquet.write_table(pa.table({"t": ["c"], "y": [1.0]}), tmp_path / "c.parquet")
    assert load_task([first, tmp_path / "c.parquet"], text="t", label="y").labels == ("1", "2")
    second.write_text('{"t": "c", "y": "none"}\n')
    assert set(load_task([first, second], text="t", label="y").labels) == {"1.0", "2.0", "none"}


@pytest.mark.parametrize("saved", ["one", "splits"])
def test_folders_that_save_to_disk_wrote(tmp_path: Path, saved: str) -> None:
    import datasets

    features = datasets.Features(
        {"p": datasets.Value("string"), "c": datasets.ClassLabel(names=["no", "yes"])}
    )

    def data(name: str, *classes: int) -> datasets.Dataset:
        rows = {"p": [f"{name}{i}" for i in range(len(classes))], "c": list(classes)}
        return datasets.Dataset.from_dict(rows, features=features)

    folder = tmp_path / "saved"
    if saved == "one":
        data("t", 0, 1, 0).select([1, 2]).save_to_disk(folder / "t")
        data("v", 1).save_to_disk(folder / "v")
        task = load_task(folder / "t", validation=folder / "v", **COLUMNS)
        assert {p for p, _ in pairs(task)} == {"t1", "t2", "v0"}
        assert load_task(**task_source(task)).train == task.train
        with pytest.raises(TaskError, match="is a folder; name its files, such as"):
            load_task(folder, **COLUMNS)
        (folder / "t" / "data-00000-of-00001.arrow").write_bytes(b"broken")
        with pytest.raises(TaskError, match="t cannot be loaded: "):
            load_task(folder / "t", **COLUMNS)
        return
    parts = {"train": data("t", 1, 0), "validation": data("v", 1), "test": data("x", -1)}
    datasets.DatasetDict(parts).save_to_disk(folder)
    with pytest.warns(UserWarning, match=r"\(test\) has no labels; it is left out"):
        task = load_task(str(folder), text="p", label="c")
    assert [(e.text, e.label) for e in task.train] == [("t0", "yes"), ("t1", "no")]
    assert [(e.text, e.label) for e in task.validation] == [("v0", "yes")]
    assert (task.labels, task.test) == (("no", "yes"), ())
    with pytest.raises(TaskError, match="saved brings its own validation rows; leave out"):
        load_task(folder, validation=folder / "validation", **COLUMNS)
    with pytest.raises(TaskError, match="holds splits; name the folder of one"):
        load_task(folder / "train", validation=folder, **COLUMNS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none-*.csv", "and as a pattern it fits none"),
        ("none[1].csv", "and as a pattern it fits none"),
        ("none.csv", r"there is no file .*none\.csv; look at the path"),
        ("", r"is a folder; name its files, such as '.*\*\.parquet'"),
    ],
)
def test_names_that_stand_for_nothing(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        find_files(tmp_path / name)
    with pytest.raises(TaskError, match="no file is given"):
        find_files([])


def test_a_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "d.csv", ("a", "x"), ("b", "y"))
    task = load_task("~/d.csv", **COLUMNS)
    assert pairs(task) == {("a", "x"), ("b", "y")}
    assert task_source(task) == {"name": str(tmp_path / "d.csv"), **COLUMNS}


def test_names_of_files_and_others(tmp_path: Path) -> None:
    assert all(map(is_file_name, ["a.csv", "a.CSV.gz", "b.xlsx", "c/*.json", Path("d.feather")]))
    assert not any(map(is_file_name, ["mini-e2e", "owner/name", "owner/name.v2"]))
    assert absolute("owner/name") == "owner/name"
    assert title(["a/1.csv", "2.csv", "3.csv", "4.csv"]) == "1.csv and 3 more"
    assert os.fspath(find_files([write(tmp_path / "a [*].csv", ("a", "b"))])[0]).endswith("[*].csv")


def test_a_folders_name_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "runs [v1]*?"
    folder.mkdir()
    files = [write(folder / f"{n}.csv", (n, "x")) for n in "ab"]
    assert find_files(folder / "*.csv") == files
    assert find_files(folder / "**" / "a.*") == files[:1]


def test_rows_in_memory_have_no_encoding(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", "y")]
    with pytest.raises(TaskError, match="list in memory has no encoding, sep or field"):
        load_task(rows, encoding="cp1252")
    held_out = tmp_path / "v.csv"
    held_out.write_bytes("0^1\né^x\n".encode("cp1252"))
    task = load_task(rows, validation=held_out, encoding="cp1252", sep="^", prompt=0, completion=1)
    assert {e.prompt for e in task.validation} == {"0", "é"}
