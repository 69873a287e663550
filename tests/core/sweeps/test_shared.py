"""Two processes that call one sweep train each cell once, and one goes on with a dead one's."""

from __future__ import annotations

import json
import os

import pytest

from lora_lab.runs.records import list_runs
from lora_lab.sweeps.store import SweepStore
from tests.helpers.script_process import answer_of
from tests.helpers.shared_sweeps import SCENARIOS, STEPS, call
from tests.helpers.tiny_run import until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    return folder, answer_of("shared_sweeps.py", folder)


def trained(folder):
    """The cells in the order of their ends."""
    lines = (folder / "sweep" / "cells.jsonl").read_text().splitlines()
    return [json.loads(line)["cell"] for line in lines]


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_cell_is_trained_once(shared, name):
    folder, found = shared[0] / name, shared[1][name]
    plan = json.loads((folder / "sweep" / "sweep.json").read_text())
    cells = sorted(cell["id"] for cell in plan["cells"])
    assert sorted(trained(folder)) == cells
    assert len(cells) == {"other cells": 3}.get(name, 4)
    runs = list_runs(folder / "sweep")
    assert len(runs) == len(cells)
    for record in runs:
        steps = [row["step"] for row in record.open().rows]
        wanted = 0 if name == "one cell fails" and record.config["lora"]["r"] == 2 else STEPS
        assert steps == list(range(1, wanted + 1)), "each step stands once"
    seen = [process for process in found if process is not None]
    assert len(seen) == (1 if name == "one dies" else 2)
    assert all(process["state"] == "done" for process in seen)
    counts = [len(process["cells"]) for process in seen]
    assert set(counts) == {2 if name == "other cells" else 4}, "all wait for the last cell"


def test_a_failed_cell_failed_for_both(shared):
    states = [sorted(process["cells"].values()) for process in shared[1]["one cell fails"]]
    assert states == [["done", "done", "done", "failed"]] * 2


def test_who_waits_for_another_process_says_so_and_can_be_stopped(tmp_path):
    found = call(tmp_path, [1], start=False)
    found.folder.mkdir(parents=True)
    store = SweepStore(found.folder)
    with store.claim(found.cells[0].id) as mine:
        assert mine
        found.start()
        until(lambda: found.snapshot.elsewhere)
        assert found.snapshot.elsewhere == {found.cells[0].id}
        assert found.snapshot.run is None
        found.stop()
        assert found.wait(60)
    assert found.snapshot.state == "stopped"
    assert found.snapshot.ended == {}
    assert call(tmp_path, [1]).results(60).keys() == {found.cells[0].id}


def test_a_run_that_somebody_goes_on_with_by_hand_is_waited_for(tmp_path):
    from lora_lab.runs.lock import RunLock

    found = call(tmp_path, [1])
    until(lambda: found.snapshot.run is not None and found.snapshot.run.snapshot.step >= 3)
    found.stop()
    assert found.wait(60)
    (cut,) = list_runs(found.folder)
    held = RunLock(cut.folder)
    held.acquire()
    again = call(tmp_path, [1])
    until(lambda: again.snapshot.elsewhere)
    held.release()
    assert [result.run for result in again.results(60).values()] == [cut.id]
