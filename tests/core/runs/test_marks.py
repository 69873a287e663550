"""A title, a note and a star that a run was given: kept with it, whole, and never in its way."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

import lora_lab as ll
from lora_lab.errors import RunError
from lora_lab.runs.marks import MARKS_FILE, Marks, read_marks, write_marks


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "20260101-000000-aaaa"
    folder.mkdir()
    (folder / "config.json").write_text('{"id": "20260101-000000-aaaa"}')
    return folder


def test_what_is_left_out_stays(run: Path) -> None:
    assert read_marks(run) == Marks()
    (record,) = ll.list_runs(run.parent)
    record.mark(title="  the long\none ", starred=True)
    record.mark(note="two\nlines")
    assert record.marks == Marks("the long one", "two\nlines", True)
    (again,) = ll.list_runs(run.parent)
    assert again.marks == record.marks
    record.mark(title="", starred=False)
    assert record.marks == Marks("", "two\nlines", False)
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_it_is_open_to_others_as_the_umask_has_it(run: Path) -> None:
    before = os.umask(0o027)
    try:
        write_marks(run, starred=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((run / MARKS_FILE).stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "text", ["", "[]", "no json", '{"title": 7, "starred": "yes"}', '{"note": [1]}', "\xff"]
)
def test_a_damaged_file_is_no_marks_and_can_be_written_anew(run: Path, text: str) -> None:
    (run / MARKS_FILE).write_text(text, encoding="latin-1")
    assert read_marks(run) == Marks()
    write_marks(run, title="a")
    assert json.loads((run / MARKS_FILE).read_text()) == {
        "title": "a",
        "note": "",
        "starred": False,
    }


def test_a_link_is_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text('{"title": "theirs"}')
    (run / MARKS_FILE).symlink_to(tmp_path / "elsewhere")
    assert read_marks(run) == Marks()
    write_marks(run, title="mine")
    assert (tmp_path / "elsewhere").read_text() == '{"title": "theirs"}'
    assert read_marks(run).title == "mine"


def test_too_long_or_gone_is_one_line(run: Path) -> None:
    with pytest.raises(RunError, match="the title has 201 characters; at most 200 are kept"):
        write_marks(run, title="a" * 201)
    with pytest.raises(RunError, match="the note has 4,001 characters"):
        write_marks(run, note="a" * 4_001)
    assert not (run / MARKS_FILE).exists()
    with pytest.raises(RunError, match="there is no run in"):
        write_marks(run.parent / "gone", title="a")
