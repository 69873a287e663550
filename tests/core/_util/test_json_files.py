"""JSON from strangers: what does not fit is one error, and never a hang or a crash."""

from __future__ import annotations

import json
import os

import pytest

from lora_lab._util import json_files
from lora_lab._util.json_files import parse_json, read_bytes, read_json


def test_what_is_ordinary_is_read_as_it_is(tmp_path):
    value = {"a": [1, -2.5e-3, None, True, "ä – 😀", 10**17], "": {}}
    path = tmp_path / "file.json"
    for ascii_only in (True, False):
        path.write_text(json.dumps(value, ensure_ascii=ascii_only), encoding="utf-8")
        assert read_json(path) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"loss": 1' + b"0" * 400 + b"}", "a number has 401 digits"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b'{"a": "\xff"}', "can't decode byte"),
        (b"", "Expecting value"),
        (b"\0" * 100, "Expecting value"),
    ],
)
def test_what_does_not_fit_is_a_value_error(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_halves_of_surrogate_pairs_become_the_mark_of_what_is_lost():
    read = parse_json(rb'{"\ud800a": ["\udcff", "\uD83D\uDE00"]}')
    assert read == {"�a": ["�", "😀"]}
    json.dumps(read, ensure_ascii=False).encode()


def test_only_regular_files_of_bounded_size_are_read(tmp_path, monkeypatch):
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    (tmp_path / "link.json").symlink_to(mine)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    for name in ("link", "pipe", "zero"):
        with pytest.raises(OSError, match="it is a link or no regular file"):
            read_json(tmp_path / f"{name}.json")
    sparse = tmp_path / "sparse.json"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"it has {2**40} bytes; at most {2**26} are read"):
        read_json(sparse)
    monkeypatch.setattr(json_files, "MOST_BYTES", 1)
    with pytest.raises(ValueError, match="at most 1 are read"):
        read_json(mine)
    assert read_bytes(mine, 2) == b"{}"
