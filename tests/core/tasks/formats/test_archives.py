"""What is packed within what is packed is looked into, or refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from lora_lab.errors import TaskError
from lora_lab.tasks.formats import unpacked
from lora_lab.tasks.formats.archives import check_archive

LINES = b'{"prompt": "a", "completion": "b"}\n' * 4
ZEROS = b"0" * 2**21
BOMB = "x unpacks to more than 100 times its size, as no text does"


def zipped(parts: Mapping[str, bytes]) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return made.getvalue()


def tarred(parts: Mapping[str, bytes], mode: Any = "w") -> bytes:
    with tarfile.open(fileobj=(made := io.BytesIO()), mode=mode) as file:
        for name, text in parts.items():
            found = tarfile.TarInfo(name)
            found.size = len(text)
            file.addfile(found, io.BytesIO(text))
    return made.getvalue()


def a_parquet(text: bytes) -> bytes:
    parquet.write_table(
        pa.table({"p": [text.decode()[:1000]] * (len(text) // 1000)}), made := Sink()
    )
    return made.getvalue()


def an_arrow(text: bytes) -> bytes:
    table = pa.table({"p": [text.decode()]})
    with ipc.new_stream(made := Sink(), table.schema, options=ZSTD) as file:
        file.write_table(table)
    return made.getvalue()


class Sink(io.BytesIO):
    """What pyarrow closes, and is read nonetheless."""

    def close(self) -> None: ...


ZSTD = ipc.IpcWriteOptions(compression="zstd")
INNER: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl.gz": gzip.compress,
    "a.jsonl.bz2": bz2.compress,
    "a.jsonl.xz": lzma.compress,
    "a.lzma": lambda text: lzma.compress(text, lzma.FORMAT_ALONE),
    "a.zip": lambda text: zipped({"a.jsonl": text}),
    "a.tar.gz": lambda text: tarred({"a.jsonl": text}, "w:gz"),
    "a.parquet": a_parquet,
    "a.arrow": an_arrow,
    "without an end": gzip.compress,
    "after something.zip": lambda text: b"something" + zipped({"a.jsonl": text}),
    "in two": lambda text: gzip.compress(b"a") + gzip.compress(text),
}
OUTER: dict[str, Callable[[str, bytes], bytes]] = {
    "zip": lambda name, text: zipped({"b.jsonl": LINES, name: text}),
    "tar": lambda name, text: tarred({"b.jsonl": LINES, name: text}),
    "tar.gz": lambda name, text: tarred({"b.jsonl": LINES, name: text}, "w:gz"),
    "gz": lambda _, text: gzip.compress(text),
    "zip in a tar": lambda name, text: tarred({"z": zipped({name: text})}),
    "tar in a zip": lambda name, text: zipped({"t": tarred({"b": LINES, name: text})}),
    "broken ones before": lambda name, text: tarred(
        {"a.gz": b"\x1f\x8b no", "a.bz2": b"BZh, a name", "a.zip": b"PK\x03\x04",
         "a.parquet": b"PAR1", "a": b"\xff\xff\xff\xff\x00",
         "t": tarred({"a": b""})[:512] + b"1" * 99, name: text}
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "_ALWAYS_UNPACKED", 2**20)


def check(path: Path, made: bytes) -> None:
    path.write_bytes(made)
    check_archive(path, "x")


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_what_is_packed_twice_counts_with_what_is_in_it(inner, outer, tmp_path):
    if outer == "gz" and inner.startswith("after"):
        pytest.skip("who unpacks the .gz has a file without a name")
    check(tmp_path / "x", OUTER[outer](inner, INNER[inner](LINES)))
    with pytest.raises(TaskError, match=BOMB):
        check(tmp_path / "x", OUTER[outer](inner, INNER[inner](ZEROS)))


def test_many_small_ones_count_together(tmp_path):
    part = gzip.compress(b"0" * 2**18)
    check(tmp_path / "x", zipped({f"{i}.gz": part for i in range(3)}))
    with pytest.raises(TaskError, match=BOMB):
        check(tmp_path / "x", zipped({f"{i}.gz": part for i in range(9)}))


@pytest.mark.parametrize("mark", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"])
@pytest.mark.parametrize("outer", OUTER)
def test_what_cannot_be_looked_into_is_refused_within_too(outer, mark, tmp_path):
    with pytest.raises(TaskError, match=r"is packed by .*, which is not looked into here; unpack"):
        check(tmp_path / "x", OUTER[outer]("a", mark + bytes(40)))


@pytest.mark.parametrize(
    "pack", [gzip.compress, lambda text: zipped({"a": text}), lambda text: tarred({"a": text})]
)
def test_archives_without_end_are_refused(pack, tmp_path):
    made = LINES
    for _ in range(6):
        made = pack(made)
    check(tmp_path / "x", made)
    for _ in range(60):
        made = pack(made)
    with pytest.raises(TaskError, match="x has more than 8 archives within each other, which is"):
        check(tmp_path / "x", made)


def test_one_that_is_two_things_counts_as_each(tmp_path):
    check(tmp_path / "x", b"BZh" + zipped({"a": LINES}))
    with pytest.raises(TaskError, match=BOMB):
        check(tmp_path / "x", b"BZh" + zipped({"a": ZEROS}))


def test_a_tar_with_holes_counts_as_it_is_written(tmp_path):
    hole = tarfile.TarInfo("a")
    hole.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a",
        "GNU.sparse.realsize": str(2**40),
    }  # fmt: skip
    data = b"1\n0\n1\n".ljust(512, b"\0") + b"a".ljust(512, b"\0")
    hole.size = len(data)
    with tarfile.open(fileobj=(made := io.BytesIO()), mode="w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(hole, io.BytesIO(data))
    with pytest.raises(TaskError, match=BOMB):
        check(tmp_path / "x", made.getvalue())


@pytest.mark.parametrize(
    "text", [b"", b"BZh, a name\n", b"PK\x03\x04", b"PAR1", b"\x1f\x8b", LINES]
)
def test_what_only_looks_like_one_passes(text, tmp_path):
    check(tmp_path / "x", text)


def test_parts_under_a_password_are_whoevers_has_it(tmp_path):
    made = bytearray(zipped({"a.gz": gzip.compress(LINES)}))
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.index(mark) + flags] |= 1
    check(tmp_path / "x", bytes(made))
