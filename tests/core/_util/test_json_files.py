"""JSON from strangers: what does not fit is one error, and never a hang or a crash."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_lab._util import json_files
from lora_lab._util.json_files import fitted, parse_json, read_bytes, read_json
from lora_lab.runs.schema import StateSample


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


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.sampled_from([-(10**18) + 1, -(10**18)])
    | st.floats()
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.booleans())
def test_what_is_read_is_what_json_reads(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return
    too_long = []
    expected = json.loads(
        encoded, parse_int=lambda d: too_long.append(abs(int(d)) >= 10**18) or int(d)
    )
    if any(too_long):
        with pytest.raises(ValueError, match="a number has"):
            parse_json(encoded)
    elif "\\ud" not in text:  # see below
        assert repr(parse_json(encoded)) == repr(expected)


def test_texts_with_long_numbers_are_read():
    assert parse_json(b'{"id": "%s", "x": 0.%s}' % (b"7" * 40, b"3" * 40))["x"] == 1 / 3


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
    tracemalloc.start()
    read_json(mine)
    assert tracemalloc.get_traced_memory()[1] < 2**17, "no room for the largest file"
    tracemalloc.stop()
    sparse = tmp_path / "sparse.json"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=f"it has {2**40} bytes; at most {2**26} are read"):
        read_json(sparse)
    monkeypatch.setattr(json_files, "MOST_BYTES", 1)
    with pytest.raises(ValueError, match="at most 1 are read"):
        read_json(mine)
    assert read_bytes(mine, 2) == b"{}"


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.ones(()), torch.ones(2, 2, dtype=bool)])
def test_a_tensor_where_plain_values_belong_does_not_fit(tensor):
    with pytest.raises(ValueError):
        fitted({"samples": [tensor]}, dict[str, list[StateSample]])
