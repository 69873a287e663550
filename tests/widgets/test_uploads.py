"""A file that comes in pieces: whole or not at all, beside what has its name."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from lora_lab.errors import TaskError
from lora_lab_widgets import uploads
from lora_lab_widgets.uploads import Upload


def written(name: str, data: bytes, folder: Path) -> Path:
    upload = Upload(name)
    for at in range(0, len(data), 7):
        upload.add(base64.b64encode(data[at : at + 7]).decode())
    return upload.write(folder)


def test_it_is_what_was_sent_under_its_name_alone(tmp_path: Path) -> None:
    data = bytes(range(256))
    path = written("C:\\fake\\..\\mine.csv", data, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "mine.csv"
    assert path.read_bytes() == data
    assert [each.name for each in path.parent.iterdir()] == ["mine.csv"]


@pytest.mark.parametrize(("name", "next_name"), [("a.csv", "a-2.csv"), ("a.csv.gz", "a-2.csv.gz")])
def test_another_one_of_its_name_stays(tmp_path: Path, name: str, next_name: str) -> None:
    first = written(name, b"one", tmp_path)
    assert written(name, b"two", tmp_path) == tmp_path / next_name
    assert first.read_bytes() == b"one"
    assert written(name, b"one", tmp_path) == first  # the same once more
    assert written(name, b"two", tmp_path) == tmp_path / next_name


@pytest.mark.parametrize("letter", ["a", "数", "🙂"])
def test_a_long_name_is_cut_to_what_disks_take(tmp_path: Path, letter: str) -> None:
    paths = [written(f"{letter * 300}.csv.gz", data, tmp_path) for data in (b"one", b"two")]
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    assert all(path.name.endswith(".csv.gz") for path in paths)


@pytest.mark.parametrize("name", ["program.exe", "../../.csv", "", "csv", "a.csv/"])
def test_what_is_of_no_known_format_is_refused(name: str) -> None:
    with pytest.raises(TaskError, match="not of a known format; use"):
        Upload(name)


def test_what_comes_damaged_or_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    upload = Upload("ok.csv")
    with pytest.raises(TaskError, match=r"ok\.csv came damaged"):
        upload.add("no base64!")
    monkeypatch.setattr(uploads, "MOST", 3)
    with pytest.raises(TaskError, match=r"ok\.csv is larger than 3 B; put it on the kernel"):
        upload.add(base64.b64encode(b"four").decode())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    upload = Upload("ok.csv")
    upload.add("eA==")
    with pytest.raises(TaskError, match=r"cannot write .*; free some space or choose another"):
        upload.write(tmp_path / "file" / "below")
