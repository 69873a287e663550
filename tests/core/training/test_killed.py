"""Runs that were killed go on bit for bit; `python -m benchmarks.kills` is 500 of them."""

from __future__ import annotations

import os

import pytest

from tests.helpers.killed_runs import SEEDS, STEPS
from tests.helpers.script_process import answer_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return answer_of("killed_runs.py", tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_killed_anywhere_goes_on_bit_for_bit(killed, seed):
    found = killed["killed"][seed]
    alone = killed["alone"][found["method"]]
    assert [step for step, _ in alone["losses"]] == list(range(1, STEPS + 1))
    assert alone["logged"] == alone["losses"]
    assert set(found["signals"]) <= {0, 9}
    assert found["leftovers"] == []
    for key in ("losses", "logged", "adapter", "saved", "metrics"):
        assert found.get(key, alone[key]) == alone[key], (key, found["kinds"], found["stood"])


def test_the_killed_runs_had_been_cut_off_here_and_there(killed):
    stood = [tuple(stood) for case in killed["killed"] for stood in case["stood"]]
    cut = [step for state, step in stood if state == "cut off"]
    assert len(cut) >= len(SEEDS) // 2, "the others were over already"
    assert len(set(cut)) >= 3
    assert max(len(case["stood"]) for case in killed["killed"]) > 1, "some died once more"
