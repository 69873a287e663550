"""Runs that were killed go on from their last checkpoint, bit for bit."""

from __future__ import annotations

import os

import pytest

from tests.helpers.killed_runs import SEEDS, STEPS
from tests.helpers.script_process import answer_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return answer_of("killed_runs.py", tmp_path_factory.mktemp("killed"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_killed_anywhere_goes_on_bit_for_bit(killed, seed):
    alone, found = killed["alone"], killed["killed"][seed]
    assert [step for step, _ in alone["losses"]] == list(range(1, STEPS + 1))
    assert found["signal"] == 9
    assert found["losses"] == alone["losses"]
    assert found["logged"] == alone["losses"], "each step stands once"
    assert found["adapter"] == alone["adapter"]
    assert found["saved"] == alone["saved"]
    assert found["metrics"] == alone["metrics"]
    assert found["leftovers"] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_the_killed_runs_had_been_cut_off_here_and_there(killed):
    cut = [run for run in killed["killed"] if run["state"] == "cut off"]
    assert len(cut) >= len(SEEDS) // 2, "the others were over already"
    assert len({run["from"] for run in cut}) >= 3
