"""A hub data set's files are looked through before `datasets` unpacks them, and read as it does."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from lora_lab.errors import TaskError
from lora_lab.tasks.formats import unpacked
from lora_lab.tasks.hub_data import load_hub

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ZEROS = json.dumps({"prompt": "0" * 2**22, "completion": "a"}).encode() + b"\n"
BOMB = "unpacks to more than 100 times its size, as no text does"


def zipped(text: bytes) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("train.jsonl", text)
    return made.getvalue()


def tarred(text: bytes) -> bytes:
    with tarfile.open(fileobj=(made := io.BytesIO()), mode="w:gz") as file:
        found = tarfile.TarInfo("train.jsonl")
        found.size = len(text)
        file.addfile(found, io.BytesIO(text))
    return made.getvalue()


PACKED = {
    "train.jsonl.gz": gzip.compress,
    "train.jsonl.bz2": bz2.compress,
    "train.jsonl.xz": lzma.compress,
    "train.zip": zipped,
    "train.tar.gz": tarred,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "_ALWAYS_UNPACKED", 2**20)


def loaded(path: Path, kind: str = "json") -> list[Any]:
    cache = path.parent / "cache"
    rows = [*load_hub(kind, data_files=str(path), cache_dir=str(cache))["train"]]
    assert rows
    return rows


@pytest.mark.parametrize("name", PACKED)
def test_what_unpacks_to_more_is_refused_before_it_is(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(PACKED[name](LINES))
    assert loaded(path) == ROWS
    path.write_bytes(PACKED[name](ZEROS))
    with pytest.raises(TaskError, match=BOMB):
        loaded(path)
    written = (file for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert not [file for file in written if file.stat().st_size > 2**20]


def test_a_parquet_whose_texts_are_meant_often_is_refused(tmp_path):
    path = tmp_path / "train.parquet"
    parquet.write_table(pa.Table.from_pylist(ROWS), path)
    assert loaded(path, "parquet") == ROWS
    parquet.write_table(pa.table({"p": ["0" * 1000] * 5000}), path)
    with pytest.raises(TaskError, match=BOMB):
        loaded(path, "parquet")
    front: Any = {"use_dictionary": False, "column_encoding": {"p": "DELTA_BYTE_ARRAY"}}
    parquet.write_table(pa.table({"p": [f"{'0' * 1000}{i}" for i in range(5000)]}), path, **front)
    with pytest.raises(TaskError, match=BOMB):
        loaded(path, "parquet")


@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream])
def test_arrows_files_too(new, tmp_path):
    path = tmp_path / "train.arrow"

    def write(rows: list[Any]) -> None:
        table = pa.Table.from_pylist(rows)
        with new(path, table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as file:
            file.write_table(table)

    write(ROWS)
    assert loaded(path, "arrow") == ROWS
    write([{"prompt": "0" * 2**22}])
    with pytest.raises(TaskError, match=BOMB):
        loaded(path, "arrow")


def test_what_cannot_be_looked_into_is_refused(tmp_path):
    path = tmp_path / "train.7z"
    path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(40))
    with pytest.raises(
        TaskError, match="is packed by 7-Zip, which is not looked into here; unpack"
    ):
        loaded(path)


def test_splits_and_rows_are_those_of_datasets(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.jsonl", "validation.jsonl"):
        (data / name).write_bytes(LINES)
    mine = load_hub(str(data), cache_dir=str(tmp_path / "mine"))
    theirs = datasets.load_dataset(str(data), cache_dir=str(tmp_path / "theirs"))
    assert mine.keys() == theirs.keys()
    assert {part: [*mine[part]] for part in mine} == {part: [*theirs[part]] for part in theirs}
