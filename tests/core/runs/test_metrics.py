"""metrics.jsonl is read in pieces, and a damaged line costs itself alone."""

from __future__ import annotations

import json
import math
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_lab.runs import metrics
from lora_lab.runs.metrics import METRICS_FILE, cut_lines, read_last_row, read_losses, read_metrics

GOOD = st.builds(
    lambda step, loss: json.dumps({"step": step, "loss": loss, "tokens": 64, "seconds": 0.25}),
    st.integers(0, 10**7),
    st.floats() | st.integers(-9, 9),
)
ODD = st.sampled_from(
    [
        *("", "{", "null", "[]", "[1]", '{"step": 1', '"step": 2}', '{"loss": 1}', "\0\0\0"),
        *('{"step": 1.0, "loss": 2}', '{"step": true}', '{"step": "1"}', '{"step": 3}'),
        *('{"step": 1, "loss": 2}{"step": 2, "loss": 3}', '{"step": 1, "loss": "2"}'),
        *('{"step": 4, "loss": null}', '{"step": 5, "loss": 1e999}', '{"step": 6, "loss": [1]}'),
        '{"step": 1' + "0" * 400 + "}",
        '{"step": 7, "loss": 0.5, "note": "\\ud800"}',
        '{"step": 8, "loss": 0.5, "deep": ' + "[" * 100_000,
        '{"step": 9, "loss": 0.5, "skipped": true, "step": 10}',
        "x" * 3000,
    ]
)


def expected(lines: list[str]) -> list[tuple[int, float]]:
    """What Python's own json makes of the lines."""
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int and row["step"] < 10**18:
            loss = row.get("loss")
            if isinstance(loss, int | float):
                found.append((row["step"], float(loss)))
    return found


@example(["", '{"step": 1, "loss": 2}{"step": 2, "loss": 3}'], 64)
@given(st.lists(GOOD | ODD, max_size=30), st.sampled_from([64, 1000, 2**20]))
def test_losses_are_those_of_the_whole_lines(tmp_path_factory, lines, piece):
    folder = tmp_path_factory.mktemp("run")
    (folder / METRICS_FILE).write_text("".join(f"{line}\n" for line in lines) + '{"step": 99, "lo')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_PIECE", max(piece, max((len(x) for x in lines), default=0)))
        found = read_losses(folder)
        rows = read_metrics(folder)
    np.testing.assert_equal(np.array(found.pairs()), np.array(expected(lines)))
    assert [row["step"] for row in rows if "loss" in row] == found.steps.tolist()


def write_steps(folder, count: int) -> None:
    line = '{{"step": {}, "loss": {}, "learning_rate": 0.001, "tokens": 64, "seconds": 1.5}}\n'
    (folder / METRICS_FILE).write_text(
        "".join(line.format(step, 1 / step) for step in range(1, count + 1))
    )


def test_many_steps_are_neither_held_nor_parsed_one_by_one(tmp_path, monkeypatch):
    write_steps(tmp_path, 40_000)
    size = (tmp_path / METRICS_FILE).stat().st_size
    monkeypatch.setattr(metrics, "_PIECE", 2**16)
    monkeypatch.setattr(metrics, "parse_json", None)  # what would take each line by itself
    tracemalloc.start()
    try:
        found = read_losses(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.steps.tolist() == list(range(1, 40_001))
    assert found.losses.tolist() == [1 / step for step in range(1, 40_001)]
    assert peak < size / 2  # arrays, twice while they are joined: 32 of some 90 bytes


@pytest.mark.parametrize("damage", [b"\0" * 50, b'{"step": 3, "lo', b'"' * 200_000 + b"\n"])
def test_a_damaged_piece_costs_its_damaged_lines(tmp_path, monkeypatch, damage):
    write_steps(tmp_path, 3_000)
    path = tmp_path / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1000], damage, *lines[1000:]]))
    monkeypatch.setattr(metrics, "_PIECE", 2**14)
    lost = {1001} if not damage.endswith(b"\n") else set()
    assert read_losses(tmp_path).steps.tolist() == [s for s in range(1, 3001) if s not in lost]
    assert read_last_row(tmp_path)["step"] == 3000


@pytest.mark.parametrize("kind", ["none", "folder", "link", "pipe", "sparse"])
def test_what_is_no_such_file_holds_nothing(tmp_path, kind):
    path = tmp_path / METRICS_FILE
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
    assert len(read_losses(tmp_path).steps) == 0
    assert read_metrics(tmp_path) == []
    assert read_last_row(tmp_path) == {}


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(-3, 200), st.sampled_from([1, 7, 99]))
def test_a_file_is_cut_after_a_whole_line(tmp_path_factory, lengths, size, piece):
    path = tmp_path_factory.mktemp("run") / METRICS_FILE
    text = b"".join(b"x" * length + b"\n" for length in lengths) + b"half"
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch, path.open("r+b") as file:
        patch.setattr(metrics, "_PIECE", piece)
        cut_lines(file, size)
    assert path.read_bytes() == text[: text.rfind(b"\n", 0, max(0, size)) + 1]


def test_numbers_that_are_none_are_among_the_losses(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1}\n')
    (_, nan), last = read_losses(tmp_path).pairs()
    assert math.isnan(nan)
    assert last == (2, 1.0)
