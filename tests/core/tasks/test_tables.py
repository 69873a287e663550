"""Text reaches a task as it stands in the file that was named."""

from __future__ import annotations

import gzip
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lora_lab.errors import TaskError
from lora_lab.tasks.load import load_task
from lora_lab.tasks.memory import read_memory
from lora_lab.tasks.sources import task_source
from lora_lab.tasks.tables import read_file

COLUMNS = {"prompt": "p", "completion": "c"}


def both(task: Any) -> dict[str, str]:
    """Return {prompt: completion} of all examples."""
    return {e.prompt: e.completion for e in (*task.train, *task.validation)}


def write(path: Path, data: Mapping[str, str]) -> Path:
    """Write prompts and completions that need no quotes."""
    if path.suffix == ".csv":
        text = "".join(f"{p},{c}\n" for p, c in {"p": "c", **data}.items())
    else:
        text = "".join(json.dumps({"p": p, "c": c}) + "\n" for p, c in data.items())
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("text", ["2024-01-%02d", "2024-01-%02dT10:00:00+02:00", "10:%02d",
                                  "1.%02d0", "0%02d", "%02d", "1e%02d", "true%02d"])  # fmt: skip
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_texts_that_look_like_something_else(tmp_path: Path, name: str, text: str) -> None:
    data = {f"question {i}": text % (i // 2 + 1) for i in range(12)}
    assert both(load_task(write(tmp_path / name, data), **COLUMNS)) == data
    labeled = load_task(write(tmp_path / name, data), text="p", label="c")
    assert set(labeled.labels) == set(data.values())


@pytest.mark.parametrize("name", ["train [v1].csv", "data?.csv", "a*.csv", "{x}.csv", "a b%20.csv"])
def test_the_file_that_was_named(tmp_path: Path, name: str) -> None:
    for other in ("train 1.csv", "train v.csv", "data1.csv", "ab.csv", "x.csv", "a b .csv"):
        write(tmp_path / other, {f"q{i}": "wrong" for i in range(6)})
    data = {f"q{i}": f"right {i}" for i in range(6)}
    assert both(load_task(write(tmp_path / name, data), **COLUMNS)) == data


def test_a_comma_that_nobody_quoted(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        "text,label\n" + "".join(f"order {i} came late, rude staff {i},neg\n" for i in range(12))
    )
    with pytest.raises(TaskError, match=r"row 1 \(line 2\) has 3 fields where .* has 2"):
        load_task(tmp_path / "d.csv", text="text", label="label")


def test_bytes_are_text_and_nan_is_nothing(tmp_path: Path) -> None:
    data = {f"q{i}": f"éa{i}" for i in range(12)}
    columns = {"p": [p.encode() for p in data], "c": [c.encode() for c in data.values()]}
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    assert both(load_task(tmp_path / "b.parquet", **COLUMNS)) == data
    numbers = [float("nan"), None, *map(float, range(10))]
    parquet.write_table(pa.table({"p": list(data), "c": numbers}), tmp_path / "n.parquet")
    with pytest.warns(UserWarning, match="2 of 12 rows without 'p' or 'c' are left out"):
        task = load_task(tmp_path / "n.parquet", **COLUMNS)
    assert both(task) == {f"q{i + 2}": str(i) for i in range(10)}


def test_white_space_is_the_texts_own(tmp_path: Path) -> None:
    data = {f"def f{i}(x):\n": f"    return {i % 2}\n" for i in range(12)}
    assert both(load_task(write(tmp_path / "d.jsonl", data), **COLUMNS)) == data
    labeled = load_task(write(tmp_path / "d.jsonl", data), text="p", label="c")
    assert {e.text: e.label for e in (*labeled.train, *labeled.validation)} == data


def test_rows_of_white_space_only_are_left_out(tmp_path: Path) -> None:
    data = {"a": "x", "b": " \n", "\t": "y", "c": "z"}
    with pytest.warns(UserWarning, match="2 of 4 rows without 'p' or 'c' are left out"):
        assert both(load_task(write(tmp_path / "d.jsonl", data), **COLUMNS)) == {"a": "x", "c": "z"}


def test_a_column_that_is_null_at_first(tmp_path: Path) -> None:
    """Arrow decides on a column's type by its first 10 MB."""
    with (tmp_path / "d.jsonl").open("w") as file:
        for i in range(12):
            row = {"p": f"q{i}" + "x" * 1_000_000, "c": f"a{i}", "note": "late" if i > 10 else None}
            file.write(json.dumps(row) + "\n")
    assert set(both(load_task(tmp_path / "d.jsonl", **COLUMNS)).values()) == {
        f"a{i}" for i in range(12)
    }


def test_mixed_types_in_one_column(tmp_path: Path) -> None:
    values = ["a", 1, 1.50, True, "2"]
    lines = [f'{{"p": "q{i}", "c": {json.dumps(v)}}}' for i, v in enumerate(values)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    found = both(load_task(tmp_path / "d.jsonl", **COLUMNS))
    assert found == {"q0": "a", "q1": "1", "q2": "1.5", "q3": "true", "q4": "2"}


@pytest.mark.parametrize("name", ["d.csv.gz", "d.tsv.gz", "d.txt.gz", "d.jsonl.gz", "d.ndjson.gz"])
def test_compressed_files_of_text(tmp_path: Path, name: str) -> None:
    data = {"a": "x", "b": "y"}
    separator = {"csv": ",", "tsv": "\t", "txt": "|"}.get(name.split(".")[1])
    if separator:
        text = "".join(f"{p}{separator}{c}\n" for p, c in {"p": "c", **data}.items())
    else:
        text = "".join(json.dumps({"p": p, "c": c}) + "\n" for p, c in data.items())
    packed = gzip.compress(text.encode())
    (tmp_path / name).write_bytes(packed)
    assert both(load_task(tmp_path / name, **COLUMNS)) == data
    for broken in (packed[:-12], b"no gzip at all"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(TaskError, match="cannot be read as"):
            load_task(tmp_path / name, **COLUMNS)


def test_half_a_letter_is_refused(tmp_path: Path) -> None:
    data = {"a": "x", "b": "half \ud83d"}
    with pytest.raises(
        TaskError, match=r"row 2 has half a letter .*in column 'c', at 'half \\ud83d'"
    ):
        load_task(write(tmp_path / "d.jsonl", data), **COLUMNS)


def test_a_class_is_called_as_it_is_written(tmp_path: Path) -> None:
    for name in ("d.csv", "d.jsonl"):
        rows = [("q1", "1.10"), ("q2", "1.10"), ("q3", "2.0"), ("q4", "2.0"), ("q5", "2")]
        if name == "d.csv":
            text = "p,c\n" + "".join(f"{p},{c}\n" for p, c in rows)
        else:
            text = "".join(f'{{"p": "{p}", "c": {c}}}\n' for p, c in rows)
        (tmp_path / name).write_text(text)
        task = load_task(tmp_path / name, text="p", label="c")
        assert {e.text: e.label for e in (*task.train, *task.validation)} == dict(rows)


@pytest.mark.parametrize("name", ["d.csv", "d.parquet", "d.jsonl"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(TaskError, match="is a pointer of Git LFS, not the file; git lfs pull"):
        load_task(tmp_path / name, **COLUMNS)


HEADERLESS = {
    "d.csv": "q1,x\nq2,y\nq3,x\n",
    "s.csv": "q1;x\nq2;y\nq3;x\n",
    "d.tsv": "q1\tx\nq2\ty\nq3\tx\n",
    "d.txt": "q1|x\nq2|y\nq3|x\n",
    "d.jsonl": '["q1", "x"]\n["q2", "y"]\n["q3", "x"]\n',
    "d.json": '[["q1", "x"], ["q2", "y"], ["q3", "x"]]',
}


@pytest.mark.parametrize("name", HEADERLESS)
def test_columns_by_number_for_every_kind_of_task(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(HEADERLESS[name])
    expected = {"q1": "x", "q2": "y", "q3": "x"}
    assert both(load_task(path, prompt=0, completion=1)) == expected
    labeled = load_task(path, text=0, label=1)
    assert {e.text: e.label for e in (*labeled.train, *labeled.validation)} == expected
    path.write_text(HEADERLESS[name].replace("x", "1.5").replace("y", "2"))
    scored = load_task(path, text=0, target=1)
    assert {e.target for e in (*scored.train, *scored.validation)} <= {1.5, 2.0}
    with pytest.raises(TaskError, match="has no column 2; its columns are 0, 1"):
        load_task(path, prompt=2, completion=1)
    with pytest.raises(TaskError, match="and then all of them"):
        load_task(path, prompt=0, completion="c")


def test_encoding_and_separator_of_every_part(tmp_path: Path) -> None:
    for part, name in (("train.csv", "é"), ("valid.csv", "è"), ("test.csv", "ü")):
        text = "".join(
            f"{p}^{c}\n" for p, c in {"p": "c", f"{name}1": "ä", f"{name}2": "ö"}.items()
        )
        (tmp_path / part).write_bytes(text.encode("cp1252"))
    parts = {"validation": tmp_path / "valid.csv", "test": tmp_path / "test.csv"}
    task = load_task(tmp_path / "train.csv", encoding="cp1252", sep="^", **parts, **COLUMNS)
    assert both(task) == {"é1": "ä", "é2": "ö", "è1": "ä", "è2": "ö"}
    assert [e.prompt for e in task.test] == ["ü1", "ü2"]
    assert load_task(**task_source(task)).train == task.train
    with pytest.raises(TaskError, match=r"train\.csv is not utf-8: line 2 .*encoding='cp1252'"):
        load_task(tmp_path / "train.csv", sep="^", **parts, **COLUMNS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("d.jsonl", {"sep": ";"}, r"sep is for \.csv, \.tsv, \.txt; leave it out"),
        ("d.parquet", {"encoding": "utf-8"}, "has its own encoding; leave out encoding"),
        ("mini-e2e", {"encoding": "utf-8"}, "brings its own parts; leave out encoding"),
        ("owner/name", {"sep": ","}, "brings its own parts; leave out sep"),
    ],
)
def test_options_that_say_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("d.jsonl", "d.parquet"):
        Path(file).write_text("x")
    columns = {} if name == "mini-e2e" else COLUMNS
    with pytest.raises(TaskError, match=message):
        load_task(name, **columns, **options)


@pytest.mark.parametrize("other", ["Pos", "pos ", " pos", "P os"])
def test_classes_that_people_read_as_one_are_told(tmp_path: Path, other: str) -> None:
    data = {f"q{i}": ("pos", "neg", other)[i % 3] for i in range(12)}
    with pytest.warns(UserWarning, match=f"classes .*'{other}'.* differ by white space, case or"):
        task = load_task(write(tmp_path / "d.jsonl", data), text="p", label="c")
    assert set(task.labels) == {"pos", "neg", other}


def test_of_many_such_names_one_line_tells(tmp_path: Path) -> None:
    data = {f"q{i}": ("pos", "neg", "Pos", "Neg", "mid", "MID")[i % 6] for i in range(24)}
    with pytest.warns(UserWarning, match="differ by white space, case") as told:
        load_task(write(tmp_path / "d.jsonl", data), text="p", label="c")
    (line,) = (str(w.message) for w in told)
    assert line.endswith("; so it is with 2 more groups of names")


def test_texts_to_write_are_doubted_as_classes(tmp_path: Path) -> None:
    data = {f"q{i}": f"the answer to it is {i}" for i in range(12)}
    path = write(tmp_path / "d.jsonl", data)
    with pytest.warns(UserWarning, match=r"12 different texts in 12 rows.*completion='c' learns"):
        load_task(path, text="p", label="c")
    names = {f"q{i}": f"who shall we say called {i % 6}" for i in range(12)}  # each twice
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task(write(tmp_path / "e.jsonl", names), text="p", label="c")


def test_a_prompt_is_not_its_own_completion(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"a": "b", "c": "d"})
    with pytest.raises(TaskError, match="prompt and completion are one column, 'p'; name two"):
        load_task(path, prompt="p", completion="p")


def test_classes_that_look_the_same_are_told_by_their_code_points(tmp_path: Path) -> None:
    """é is one letter in NFC and two in NFD (Unicode Standard Annex 15)."""
    data = {f"q{i}": ("caf\u00e9", "cafe\u0301")[i % 2] for i in range(12)}
    with pytest.warns(UserWarning, match=r"'cafe\\u0301' and 'caf\\xe9' differ by .* Unicode form"):
        task = load_task(write(tmp_path / "d.jsonl", data), text="p", label="c")
    assert len(task.labels) == 2


def test_numbers_that_are_names(tmp_path: Path) -> None:
    """As pandas writes a frame that has none."""
    parquet.write_table(pa.table({"0": ["a", "b"], "1": ["x", "y"]}), tmp_path / "d.parquet")
    assert both(load_task(tmp_path / "d.parquet", prompt=0, completion=1)) == {"a": "x", "b": "y"}


def test_a_frame_and_the_file_of_it_are_one(tmp_path: Path) -> None:
    """A value is the same text in memory as in Parquet."""
    import pandas as pd

    day = pd.to_datetime(pd.Series(["2024-01-01", None, "2024-02-02"]))
    frame = pd.DataFrame(
        {
            "text": ["a", None, " x "],
            "bytes": [b"x", "é".encode(), None],
            "int": pd.array([1, None, 3], "Int64"),
            "gap": [1.0, None, 2.0],
            "float": [1.0, float("nan"), 1.1],
            "float32": pd.Series([0.1, 1.0, None], dtype="float32"),
            "bool": [True, False, True],
            "day": day,
            "time": day + pd.Timedelta("10h"),
            "class": pd.Categorical(["u", "v", None]),
            "list": [["a"], None, ["b"]],
        }
    )
    frame.to_parquet(tmp_path / "d.parquet")
    read, held = read_file(tmp_path / "d.parquet", ()), read_memory(frame, None).parts["training"]
    assert {n: list(read[n]) for n in frame} == {n: list(held[n]) for n in frame} == {
        "text": ["a", None, " x "],
        "bytes": ["x", "é", None],
        "int": ["1", None, "3"],
        "gap": ["1", None, "2"],
        "float": ["1.0", None, "1.1"],
        "float32": ["0.1", "1.0", None],
        "bool": ["True", "False", "True"],
        "day": ["2024-01-01 00:00:00", None, "2024-02-02 00:00:00"],
        "time": ["2024-01-01 10:00:00", None, "2024-02-02 10:00:00"],
        "class": ["u", "v", None],
        "list": [["a"], None, ["b"]],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["d.csv.gz", "d.jsonl.gz", "d.xlsx"])
def test_a_file_that_unpacks_to_more_than_texts_do_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.setattr("lora_lab.tasks.formats.unpacked._ALWAYS_UNPACKED", 100_000)
    path = tmp_path / name
    zeros = b"p,c\n" + b"0" * 2_000_000
    if path.suffix == ".xlsx":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
            parts.writestr("xl/worksheets/sheet1.xml", zeros)
    else:
        path.write_bytes(gzip.compress(zeros))
    with pytest.raises(TaskError, match="unpacks to more than 100 times its size"):
        read_file(path, ("p", "c"))


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.xlsx", "d.parquet", "d.csv.gz"])
def test_a_file_of_holes_is_refused_before_it_fills_the_memory(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.write(b"p,c\n")
        file.truncate(2**40)
    with pytest.raises(TaskError, match="is nearly all holes, and no data; fetch it again"):
        read_file(tmp_path / name, ("p", "c"))


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl", "d.xlsx", "d.parquet", "d.csv.gz", "d.xml"])
def test_a_file_that_is_one_hole_is_refused_before_it_is_read(tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(TaskError, match=r"no data; fetch it again|[nN]ot a gzip"):
        read_file(tmp_path / name, ("p", "c"))
