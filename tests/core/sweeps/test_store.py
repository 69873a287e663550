"""A sweep's folder: no cell that ended is lost, and nothing is written through a link."""

from __future__ import annotations

import os

import pytest

from lora_lab.errors import RunError
from lora_lab.sweeps.store import CellResult, SweepStore


def result(cell: str) -> CellResult:
    return CellResult(cell, "done", f"run-{cell}", 2, {"loss_after": 1.0}, {1: 2.0})


def test_a_line_that_a_full_disk_has_torn_costs_itself_alone(tmp_path):
    store = SweepStore(tmp_path)
    store.add(result("a"))
    path = tmp_path / "cells.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    store.add(result("b"))
    assert store.ended() == {"a": result("a"), "b": result("b")}


def test_a_write_that_takes_half_is_followed_by_one_of_the_rest(tmp_path, monkeypatch):
    real = os.fdopen

    class Halves:
        def __init__(self, *given, **named):
            self._file = real(*given, **named)

        def write(self, data):
            return self._file.write(bytes(data)[: max(1, len(data) // 2)])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

    monkeypatch.setattr(os, "fdopen", Halves)
    store = SweepStore(tmp_path)
    store.add(result("a"))
    monkeypatch.undo()
    assert store.ended() == {"a": result("a")}


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_received_sweep_with_links_in_it_overwrites_nothing(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("my thesis")
    store = SweepStore(tmp_path / "sweep")
    store.begin({"model": {}}, [])
    for name in ("cells.jsonl", ".sweep.json.tmp"):
        (store.folder / name).symlink_to(mine)
    store.begin({"model": {}}, [])
    with pytest.raises(RunError, match=r"cells\.jsonl: it is a link or no regular file; remove it"):
        store.add(result("a"))
    assert mine.read_text() == "my thesis"
