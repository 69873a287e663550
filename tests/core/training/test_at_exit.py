"""What becomes of runs whose process ends, or forks, or loses whoever reads its output."""

from __future__ import annotations

import os

import pytest

from tests.helpers.script_process import answer_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return answer_of("script_ends.py", tmp_path_factory.mktemp("ends"))


def is_done(run) -> None:
    assert (run["state"], run["steps"], run["adapter"]) == ("done", run["of"], True)
    assert run["logged"] == [*range(1, run["of"] + 1)]


def has_stopped(run) -> None:
    """Before its end, with a checkpoint of its last step; never called done."""
    assert run["state"] == "stopped"
    assert 0 < run["steps"] < run["of"]
    assert run["checkpoints"][-1] == run["steps"]
    assert run["logged"] == [*range(1, run["steps"] + 1)]


@pytest.mark.parametrize(
    ("script", "status"),
    [("last_line_starts_a_run", 0), ("raises", 1), ("exits", 3), ("is_marimos_as_a_script", 0)],
)
def test_a_script_that_ends_waits_for_its_run_and_says_so(ended, script, status):
    found = ended[script]
    (run,) = found["runs"]
    is_done(run)
    assert found["status"] == status
    waits, done = found["stderr"].splitlines()[-2:]
    assert waits.startswith("lora-lab: waiting for run 2")
    assert waits.endswith("; Ctrl-C ends it at its next step, with a checkpoint")
    assert "is done: step 6 of 6; its adapter is in /" in done
    assert found["stdout"] == ""
    assert ("a mistake in the script" in found["stderr"]) is (script == "raises")


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="the system does not tell")
def test_the_interpreter_is_taken_apart_when_the_runs_thread_has_left(ended):
    """What torch frees at a thread's very end needs it: the process would be aborted."""
    found = ended["has_a_thread_that_leaves_late"]
    assert found["stdout"] == "trained on 1 of which are left []\n"
    assert found["status"] == 0


def test_a_queued_run_is_waited_for_too(ended):
    first, second = ended["queues_a_second"]["runs"]
    is_done(first)
    is_done(second)
    lines = ended["queues_a_second"]["stderr"].splitlines()
    assert ["waiting" in line for line in lines] == [True, True, False, False]


def test_a_sweep_is_waited_for_as_one(ended):
    first, second = ended["sweeps"]["runs"]
    is_done(first)
    is_done(second)
    lines = ended["sweeps"]["stderr"].splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "lora-lab: waiting for sweep sweep",
        "lora-lab: sweep sweep is done: 2 of 2 cells",
    ]


@pytest.mark.parametrize(
    "script",
    [
        *("does_not_wait", "is_interrupted_while_waiting", "is_interrupted"),
        *("is_a_notebooks_kernel", "is_a_marimo_kernel"),
    ],
)
def test_what_is_not_waited_for_ends_with_a_checkpoint_and_says_so(ended, script):
    (run,) = ended[script]["runs"]
    has_stopped(run)
    last = ended[script]["stderr"].splitlines()[-1]
    assert f"ended at step {run['steps']} of {run['of']}; ll.resume('/" in last
    assert "Exception ignored" not in ended[script]["stderr"]
    waited = "waiting for" in ended[script]["stderr"]
    assert waited is (script == "is_interrupted_while_waiting")
    assert bool(ended[script]["status"]) is ("is_interrupted" in script)


def test_an_adapter_that_has_learned_nothing_is_not_left(ended):
    (run,) = ended["ends_before_the_first_step"]["runs"]
    assert run["state"] == "stopped"
    assert run["adapter"] is bool(run["steps"])


def test_a_paused_run_is_not_waited_for(ended):
    paused, queued = ended["leaves_one_paused"]["runs"]
    has_stopped(paused)
    is_done(queued)
    assert "is paused, and nobody is left to resume it" in ended["leaves_one_paused"]["stderr"]


@pytest.mark.parametrize("script", ["fails", "exits_and_fails", "goes_on_after_a_failure"])
def test_a_run_that_fails_unseen_says_why_and_so_does_the_exit_status(ended, script):
    lines = ended[script]["stderr"].splitlines()
    (said,) = [line for line in lines if " failed at step " in line]
    assert "learning_rate" in said
    assert ended[script]["status"] == 120
    assert "Exception ignored" not in ended[script]["stderr"]
    assert (lines[-1] == "what is called at the end") is (script == "fails")


def test_a_failure_that_a_script_has_looked_at_is_its_own_to_judge(ended):
    assert (ended["looks_at_a_failure"]["status"], ended["looks_at_a_failure"]["stderr"]) == (0, "")
    assert ended["is_told_of_a_failure"]["status"] == 1
    assert "lora-lab:" not in ended["is_told_of_a_failure"]["stderr"]


def test_a_sweep_with_a_failed_cell_is_none_that_went_well(ended):
    last = ended["sweeps_and_fails"]["stderr"].splitlines()[-1]
    assert last == (
        "lora-lab: sweep sweep is done: 2 of 2 cells, 1 failed; the same call of sweep() goes on "
        "with it"
    )
    assert ended["sweeps_and_fails"]["status"] == 120
    assert ended["sweeps"]["status"] == 0


def test_an_idle_run_is_none_of_it(ended):
    assert ended["is_idle"]["stderr"] == ""
    assert ended["is_idle"]["status"] == 0


def test_a_child_that_ends_leaves_its_parents_run_alone(ended):
    child, parent = ended["forks_and_waits"]["runs"]
    is_done(child)
    has_stopped(parent)
    assert ended["forks_and_waits"]["status"] == 0


def test_a_child_that_lives_on_holds_no_lock(ended):
    assert ended["orphan"] == {"state": "cut off", "resumed": 0}


@pytest.mark.parametrize(
    "script",
    ["nobody_reads_stderr", "nobody_reads_stdout", "the_terminal_closes", "stderr_is_closed"],
)
def test_whoever_reads_the_output_may_go_away(ended, script):
    (run,) = ended[script]["runs"]
    is_done(run)
    assert ended[script]["status"] == 0
    assert "Traceback" not in ended[script]["stderr"]
    assert "Exception ignored" not in ended[script]["stderr"]
