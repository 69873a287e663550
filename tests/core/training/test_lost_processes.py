"""A process of several that dies: every survivor says so in one line, and the run goes on."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch import distributed

from lora_lab.errors import RunError
from lora_lab.runs.records import RecordState, find_run
from lora_lab.training import processes
from lora_lab.training.resume import resume
from tests.helpers.lost_processes import DIES_AT, SAVE_STEPS, SCENARIOS, STEPS, begun
from tests.helpers.script_process import answer_of
from tests.helpers.several_processes import ragged_task
from tests.helpers.tiny_run import tiny_lm

pytestmark = pytest.mark.usefixtures("one_thread")
IN_A_STEP = [name for name, (_, _, when) in SCENARIOS.items() if when == "in a step"]


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    return answer_of("lost_processes.py", tmp_path_factory.mktemp("lost"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return begun(tmp_path_factory.mktemp("alone"), 12).start().result(60).losses


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_survivor_says_it_in_one_line_with_the_command(lost, name):
    count, who, when = SCENARIOS[name]
    survivors = [said for rank, said in enumerate(lost[name]) if rank != who]
    assert lost[name][who] is None, "it was killed"
    assert len(survivors) == count - 1
    for survivor in survivors:
        said, folder = survivor["said"], survivor["folder"]
        gone = rf"another of the {count} processes is gone, or has not answered \([^)]*\); "
        again = "start all of them again"
        if when != "before the start":
            again += f" with ll.resume({folder!r}) or `lora-lab train {folder} --resume`: "
            again += "the run goes on from its last checkpoint"
        assert re.search(gone + re.escape(again) + "$", said), said
        assert "\n" not in said
        assert "gloo" not in said
        assert survivor["count"] == count


@pytest.mark.parametrize("name", IN_A_STEP)
def test_the_run_goes_on_from_its_last_checkpoint(lost, name, alone):
    folder = next(said for said in lost[name] if said)["folder"]
    first_died = SCENARIOS[name][1] == 0
    state = RecordState.CUT_OFF if first_died else RecordState.FAILED
    assert find_run(folder).state is state
    run = resume(folder, tiny_lm(), ragged_task())
    assert run.steps_before == () or run.steps_before[-1][0] == DIES_AT // SAVE_STEPS * SAVE_STEPS
    losses = run.result(60).losses
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in alone], rel=2e-5)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[…/gloo/transport/tcp/pair.cc:537] Read error [::1]:4: Broken pipe. GLHF!"),
        RuntimeError("[…/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms"),
        distributed.DistBackendError("NCCL error: remote process exited or there was a network"),
        distributed.DistNetworkError("failed to recv, got 0 bytes"),
    ],
)
def test_what_torch_says_of_a_lost_process_is_told(monkeypatch, error, tmp_path):
    monkeypatch.setattr(processes, "_joined", lambda: True)
    monkeypatch.setattr(processes, "count", lambda: 4)
    gone = pytest.raises(RunError, match="another of the 4 processes is gone")
    with gone as caught, processes.lost_in_words(tmp_path):
        raise error
    assert "\n" not in str(caught.value)
    assert f"`lora-lab train {tmp_path} --resume`" in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not fit"), ValueError("no"), torch.OutOfMemoryError("full")]
)
def test_other_errors_stay_what_they_are(monkeypatch, joined, error):
    monkeypatch.setattr(processes, "_joined", lambda: joined)
    with pytest.raises(type(error)) as caught, processes.lost_in_words():
        raise error
    assert caught.value is error


def test_processes_that_do_not_meet_are_one_line(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    said = "Timed out after 2 seconds waiting for clients. 1/2 clients joined."

    def alone(*_, **__):
        raise distributed.DistStoreError(said + "\nand more")

    monkeypatch.setattr(distributed, "init_process_group", alone)
    with pytest.raises(RunError) as caught, processes.joined():
        pass
    assert str(caught.value) == (
        f"the processes have not met: {said}; start all of them, by torchrun or accelerate launch"
    )
