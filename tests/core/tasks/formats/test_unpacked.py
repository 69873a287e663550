"""What unpacks to more than texts do is refused before it is; expected sizes are the writer's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from lora_lab.errors import TaskError
from lora_lab.tasks.formats import unpacked
from lora_lab.tasks.tables import read_file

BOMB = r"^[^\n]*unpacks to more than 100 times its size, as no text does; unpack it[^\n]*$"
WORD = "0" * 1000
FRONTS: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"p": "DELTA_BYTE_ARRAY"}}


def write_parquet(path: Path, values: Any, **options: Any) -> None:
    parquet.write_table(pa.table({"p": values}), path, **options)


def write_arrow(path: Path, values: Any, compression: str | None = "zstd") -> None:
    table = pa.table({"p": values})
    new = ipc.new_stream if path.stem == "stream" else ipc.new_file
    with new(path, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)


def words(index: Any, texts: Any) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), texts)


ZEROS = [WORD * 200] * 3
SAME = np.zeros(5000, np.int32)
VIEW = np.array([1000, int.from_bytes(b"0000", "little"), 0, 0], np.int32)  # length, start, where
PARQUET: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "zeros": (lambda: ZEROS, {"compression": "zstd", "use_dictionary": False}),
    "one word": (lambda: [WORD] * 5000, {}),
    "one word in lists": (lambda: [[{"c": WORD}] * 50] * 100, {}),
    "one beginning": (lambda: [f"{WORD}{i}" for i in range(5000)], FRONTS),
    "one number": (lambda: [7] * 10**6, {}),
    "fixed": (lambda: pa.array([b"0" * 1000] * 5000, pa.binary(1000)), {}),
    "nothing": (lambda: pa.nulls(10**6, pa.string()), {}),
    "lists of nothing": (lambda: [[None] * 1000] * 1000, {}),
}
ARROW: dict[str, tuple[str, Callable[[], Any]]] = {
    "zeros": ("stream.arrow", lambda: ZEROS),
    "zeros in a file": ("file.arrow", lambda: ZEROS),
    "one word": ("file.feather", lambda: words(SAME, [WORD])),
    "one list": ("stream.arrow", lambda: words(SAME, [[WORD, "a"]])),
    "one word in lists": (
        "file.arrow",
        lambda: pa.ListArray.from_arrays([0, 2500, 5000], words(SAME, [WORD])),
    ),
    "zeros in a dictionary": ("stream.arrow", lambda: words([0, 1], [WORD * 600, "a"])),
    "nothing": ("file.arrow", lambda: pa.nulls(10**6)),
    "a run": ("stream.arrow", lambda: pa.RunEndEncodedArray.from_arrays([10**6], [WORD])),
    "one text seen often": (
        "file.arrow",
        lambda: pa.Array.from_buffers(
            pa.string_view(),
            5000,
            [None, pa.py_buffer(np.tile(VIEW, 5000)), pa.py_buffer(WORD.encode())],
        ),
    ),
    "one list seen often": (
        "stream.arrow",
        lambda: pa.ListViewArray.from_arrays(SAME, np.full(5000, 900, np.int32), ["ab"] * 900),
    ),
}


@pytest.fixture(autouse=True)
def less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "_ALWAYS_UNPACKED", 500_000)
    monkeypatch.setattr(unpacked, "_BATCH", 50_000)


@pytest.mark.parametrize("name", PARQUET)
def test_a_parquet_that_unpacks_to_more_is_refused(tmp_path: Path, name: str) -> None:
    values, options = PARQUET[name]
    write_parquet(tmp_path / "a.parquet", values(), **options)
    with pytest.raises(TaskError, match=BOMB):
        list(read_file(tmp_path / "a.parquet", ())["p"])


@pytest.mark.parametrize("name", ARROW)
def test_arrows_file_that_unpacks_to_more_is_refused(tmp_path: Path, name: str) -> None:
    file, values = ARROW[name]
    write_arrow(tmp_path / file, values())
    with pytest.raises(TaskError, match=BOMB):
        list(read_file(tmp_path / file, ())["p"])


def test_a_folder_that_datasets_saved_is_held_to_the_same(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"p": ["a", "b"]}).save_to_disk(tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    path.rename(tmp_path / "stream.arrow")
    write_arrow(tmp_path / "stream.arrow", ZEROS)
    (tmp_path / "stream.arrow").rename(path)
    with pytest.raises(TaskError, match=BOMB):
        read_file(tmp_path, ())


TEXTS = ["é", None, "", "ab" * 50, "c"]
FAIR: dict[str, Callable[[], Any]] = {
    "texts": lambda: TEXTS * 200,
    "words": lambda: words([0, None, 1, 1], ["a", "é"]),
    "large": lambda: pa.array(TEXTS, pa.large_string()),
    "large words": lambda: words([1, 0], pa.array(["a", "b"], pa.large_string())),
    "views": lambda: pa.array(TEXTS).cast(pa.string_view()),
    "chats": lambda: [[{"role": "user", "content": t}] * 3 for t in TEXTS * 100],
    "map": lambda: pa.array([[("a", "b")], None], pa.map_(pa.string(), pa.string())),
    "runs": lambda: pa.RunEndEncodedArray.from_arrays([2, 5], ["a", "b"]),
    "sliced": lambda: pa.array(TEXTS * 3).slice(2, 7),
}


@pytest.mark.parametrize("name", FAIR)
@pytest.mark.parametrize("file", ["a.parquet", "fronts.parquet", "stream.arrow", "file.feather"])
def test_what_texts_unpack_to_is_read_as_arrow_reads_it(
    tmp_path: Path, name: str, file: str
) -> None:
    values, path = pa.chunked_array([pa.array(FAIR[name]())]), tmp_path / file
    if path.suffix != ".parquet":
        write_arrow(path, values)
    elif name in ("views", "runs", "words", "large words", "map", "chats") and "fronts" in file:
        return  # it has no such encoding for these
    elif name != "runs":  # Parquet has none
        write_parquet(path, values, **(FRONTS if "fronts" in file else {}))
    else:
        return
    expected = [dict(v) if name == "map" and v else v for v in values.to_pylist()]
    found = list(read_file(path, ())["p"])
    assert [dict(v) if name == "map" and v else v for v in found] == expected


def test_offsets_that_lead_outside_are_one_line(tmp_path: Path) -> None:
    """Arrow itself reads what stands behind the data, or crashes."""
    offsets = pa.py_buffer(np.array([0, 2**30, 5], np.int32))
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"abcde")])
    write_arrow(tmp_path / "stream.arrow", texts, compression=None)
    with pytest.raises(TaskError, match=r"^[^\n]*cannot be read as arrow: [^\n]*; fix the file$"):
        read_file(tmp_path / "stream.arrow", ())


def test_a_wrong_byte_anywhere_raises_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "stream.arrow"
    write_arrow(path, TEXTS)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with contextlib.suppress(TaskError, KeyError):  # or a letter of the column's name
            list(read_file(path, ())["p"])
