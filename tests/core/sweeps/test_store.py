"""A sweep's folder: no cell that ended is lost, and nothing is written through a link."""

from __future__ import annotations

import json
import os
import warnings

import pytest

from lora_lab.errors import ConfigError, RunError
from lora_lab.sweeps.store import CellResult, SweepStore, as_begun, checked_name
from tests.helpers.crash_states import Recorder, states


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


GOOD = '{"cell": "a", "state": "done", "run": "", "step": 1, "metrics": {}, "rungs": {"1": 2.0}}'


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "7", "{}", "[" * 50_000, "\0" * 64, GOOD.replace('"a"', "[1]")),
        *(GOOD.replace('"done"', '"ran"'), GOOD.replace('"step": 1', '"step": "1"')),
        *(GOOD.replace('"step": 1', f'"step": 1{"0" * 400}'), GOOD.replace("{}", '{"x": "y"}')),
        *(GOOD.replace('"1"', '"first"'), GOOD.replace("2.0", "null"), GOOD.replace("{}", "null")),
    ],
)
def test_a_line_of_another_type_costs_its_cell_alone(tmp_path, line):
    store = SweepStore(tmp_path)
    store.add(result("b"))
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write(f'{line}\n{GOOD[:-1]}, "new": 1}}\n')
    assert store.ended() == {"a": CellResult("a", "done", "", 1, {}, {1: 2.0}), "b": result("b")}


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("[]", "Expected `object`, got `array`"),
        ('{"told": {}}', "missing required field `cells`"),
        ('{"told": [], "cells": []}', "told: Expected `object`"),
        ('{"told": {}, "cells": {}}', "cells: Expected `array`"),
        ('{"told": {}, "cells": ["a"]}', r"cells\[0\]: Expected `object`, got `str`"),
        ('{"told": {}, "cells": [{"id": [1]}]}', r"cells\[0\].id: Expected `str`, got `array`"),
        ("[" * 50_000, "nested too deep"),
    ],
)
def test_a_plan_of_another_type_is_put_aside_and_written_anew(tmp_path, plan, said):
    (tmp_path / "sweep.json").write_text(plan)
    store = SweepStore(tmp_path)
    store.add(result("a"))
    assert as_begun((), tmp_path) == ()
    with pytest.warns(UserWarning, match=rf"sweep\.json cannot be read \(.*{said}.*written anew"):
        store.begin({"model": {}}, [])
    (aside,) = tmp_path.glob("sweep.json.*.damaged")
    assert aside.read_text() == plan, "whoever wrote it has it still"
    store.check({"model": {}})
    assert store.ended() == {"a": result("a")}


@pytest.mark.parametrize("plan", ["", None])
@pytest.mark.parametrize(("kind", "key"), [("task", "data"), ("model", "body")])
def test_without_its_plan_a_sweep_is_known_by_its_runs(tmp_path, plan, kind, key):
    if plan is not None:
        (tmp_path / "sweep.json").write_text(plan)
    run = tmp_path / "20300101-000000-a-0000"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"fingerprints": {key: "theirs"}}))
    with pytest.raises(RunError, match=rf"another model or task; .*it is the {kind} that differs"):
        SweepStore(tmp_path).begin({kind: {key: "ours"}}, [])
    with warnings.catch_warnings(action="ignore"):
        SweepStore(tmp_path).begin({kind: {key: "theirs"}}, [])


def test_the_first_line_is_on_the_disk_with_its_name(tmp_path):
    store = SweepStore(tmp_path)
    with Recorder(tmp_path) as recorder:
        store.add(result("a"))
        recorder.mark("told")
    left = [tree for tree, marks in states(recorder.moments) if "told" in marks]
    assert left
    assert all(tree.get("cells.jsonl") for tree in left)


@pytest.mark.skipif(os.name == "nt", reason="no pipes")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_a_plan_or_a_record_that_is_no_file_is_refused(tmp_path, make):
    for name, read in (
        ("sweep.json", lambda: SweepStore(tmp_path).begin({}, [])),
        ("cells.jsonl", lambda: SweepStore(tmp_path).ended()),
    ):
        make(tmp_path / name)
        with pytest.raises(RunError, match=f"{name} cannot be read"):
            read()


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_cells_run_that_is_a_link_is_not_gone_on_with(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    store = SweepStore(tmp_path / "sweep")
    store.begin({"model": {}}, [])
    link = store.folder / "20260101-000000-a-abcd"
    link.symlink_to(mine)
    assert store.run_of("a") is None
    link.unlink()
    mine.rename(link)
    assert store.run_of("a").folder == link


def test_no_folder_of_a_sweep_is_called_by_a_secret(monkeypatch):
    assert checked_name("pa55-word") == "pa55-word"
    monkeypatch.setenv("MY_PASSWORD", "pa55-word")
    with pytest.raises(ConfigError, match="name looks like a secret of this machine; use another"):
        checked_name("pa55-word")
