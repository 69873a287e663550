"""Arrow's typed columns as text; expected is what the values are in Python or in Arrow."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from lora_lab.errors import TaskError
from lora_lab.tasks.formats import arrow
from lora_lab.tasks.formats.arrow import of_arrow
from lora_lab.tasks.table import Table
from lora_lab.tasks.tables import read_file

MOMENT = dt.datetime(2024, 1, 1, 10, 0, 0)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([" a\n", "", None], pa.string(), [" a\n", "", None]),
        (["a", None], pa.large_string(), ["a", None]),
        (["a", "b", None], pa.dictionary(pa.int8(), pa.string()), ["a", "b", None]),
        (["é".encode(), None], pa.binary(), ["é", None]),
        ([b"ab", None], pa.binary(2), ["ab", None]),
        (["é".encode()], pa.large_binary(), ["é"]),
        ([1, None, 2**62], pa.int64(), ["1", None, str(2**62)]),
        ([1.0, 1.1, float("nan"), None], pa.float64(), ["1.0", "1.1", None, None]),
        ([0.1, None, float("nan")], pa.float32(), ["0.1", None, None]),
        ([1.0, None, float("nan")], pa.float64(), ["1", None, None]),
        ([1.0, 3.0, 1e16], pa.float64(), ["1.0", "3.0", "1e+16"]),
        ([np.float16(0.1)], pa.float16(), ["0.1"]),
        ([Decimal("1.10"), Decimal("1E+3"), None], pa.decimal128(9, 2), ["1.10", "1000.00", None]),
        ([True, None], pa.bool_(), ["True", None]),
        ([dt.date(2024, 1, 1)], pa.date32(), ["2024-01-01"]),
        ([MOMENT, None], pa.timestamp("ns"), ["2024-01-01 10:00:00", None]),
        ([MOMENT], pa.timestamp("s", "UTC"), ["2024-01-01 10:00:00+00:00"]),
        ([dt.time(10, 30)], pa.time64("us"), ["10:30:00"]),
        ([None, None], pa.null(), [None, None]),
        ([["a", None], None], pa.list_(pa.string()), [["a", None], None]),
        ([[{"r": "u", "n": 1.5}]], None, [[{"r": "u", "n": 1.5}]]),
        ([[{"r": b"u"}]], None, [[{"r": "u"}]]),
    ],
    ids=str,
)
def test_a_value_is_the_text_that_stands_for_it(
    values: list[Any], kind: pa.DataType | None, expected: list[Any]
) -> None:
    found = of_arrow(pa.table({"c": pa.array(values, kind)}), "d")["c"]
    assert list(found) == expected
    if kind is not None and not pa.types.is_list(kind):
        assert all(type(value) in (str, type(None)) for value in found)


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".feather":
        feather.write_feather(table, path, version=int(path.stem))
    else:
        new = {"file": ipc.new_file, "stream": ipc.new_stream}[path.stem]
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize(
    "name", ["a.parquet", "1.feather", "2.feather", "file.arrow", "stream.arrow"]
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_every_file_of_arrow_is_read(tmp_path: Path, name: str) -> None:
    data = {"p": ["a", "é", None], "c": ["2024-01-01", " x ", "\n"]}
    table = read_file(write(tmp_path / name, pa.table(data)), ())
    assert {column: list(table[column]) for column in table.columns} == data
    assert len(table) == 3


@pytest.mark.parametrize("name", ["a.parquet", "2.feather", "stream.arrow"])
def test_broken_and_empty_files_get_one_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, pa.table({"p": ["a"] * 100, "c": ["b"] * 100}))
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"x" * 100, data[:5]):
        path.write_bytes(broken)
        with pytest.raises(TaskError, match="cannot be read as") as error:
            read_file(path, ())
        assert "\n" not in str(error.value)
    write(path, pa.table({"p": pa.array([], pa.string())}))
    with pytest.raises(TaskError, match="has no rows"):
        read_file(path, ())


def test_a_folders_name_is_no_column(tmp_path: Path) -> None:
    folder = tmp_path / "year=2024"
    folder.mkdir()
    table = read_file(write(folder / "a [1]?*.parquet", pa.table({"p": ["x"]})), ())
    assert table.column_names == ["p"]


def test_only_what_is_asked_for_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    table = of_arrow(pa.table({"p": ["a"], "picture": [b"\xff\xd8"]}), "d")
    calls: list[str] = []
    real = arrow._texts
    monkeypatch.setattr(arrow, "_texts", lambda column: calls.append("") or real(column))
    assert (len(table), table.texts("p"), table.texts("p")) == (1, ["a"], ["a"])
    assert len(calls) == 1
    with pytest.raises(TaskError, match=r"d: column 'picture' holds bytes that are no UTF-8"):
        list(table["picture"])
    assert len(table["picture"]) == 1


def test_two_columns_of_one_name() -> None:
    data = pa.Table.from_arrays(
        [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], ["p", "p", "c"]
    )
    table = of_arrow(data, "d")
    assert table.column_names == ["c"]
    with pytest.raises(TaskError, match="several columns that are called 'p'"):
        table.need(("p",))


def test_classes_have_their_names_where_datasets_noted_them(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"t": datasets.Value("string"), "y": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = datasets.Dataset.from_dict({"t": ["a", "b", "c"], "y": [1, 0, -1]}, features=features)
    data.to_parquet(tmp_path / "d.parquet")

    def read(table: Table) -> tuple[list[Any], list[Any]]:
        return list(table["t"]), list(table["y"])

    expected = (["a", "b", "c"], ["yes", "no", None])
    assert read(read_file(tmp_path / "d.parquet", ())) == expected
    assert read(arrow.of_dataset(data, "d")) == expected
    assert read(arrow.of_dataset(data.select([1, 0]), "d")) == (["b", "a"], ["no", "yes"])
    spoilt = data.data.table.replace_schema_metadata({b"huggingface": b'{"info": []}'})
    assert read(of_arrow(spoilt, "d")) == (["a", "b", "c"], ["1", "0", "-1"])


def test_a_column_of_floats_is_known() -> None:
    table = pa.table({"a": [1.0], "b": [1], "c": pa.array([1.0], pa.float16())})
    assert of_arrow(table, "d").floats == {"a", "c"}
