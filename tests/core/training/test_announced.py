"""A run is on the disk, listed and can be gone on with, from the moment its `start` returns."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from lora_lab.configs import LoraConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs.records import RecordState, list_runs
from lora_lab.runs.store import RunStore
from lora_lab.training import api
from lora_lab.training.resume import resume
from lora_lab.training.snapshot import RunState
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = {"max_steps": 3, "save_steps": 0, "eval_examples": 0, "max_length": 64}


@pytest.fixture
def train(tmp_path):
    """Begin a run; those that still go on are stopped in the end."""
    begun = []

    def begin(lm=None, config=CONFIG, **changes):
        settings = {"output_dir": tmp_path / "runs", **SHORT, **changes}
        begun.append(api.train(lm or tiny_lm(), tiny_task(), config, **settings))
        return begun[-1]

    yield begin
    for run in reversed(begun):
        if not run.state.final and run.state is not RunState.IDLE:
            run.stop()
            run.wait(60)


def after_a_kill(folder, to):
    """What lies on the disk now, as a process that is no more would leave it."""
    return shutil.copytree(folder, to / folder.name)


@pytest.mark.parametrize("same_model", [True, False])
def test_a_queued_run_is_listed_and_begins_again_after_a_kill(train, tmp_path, same_model):
    alone = train(output_dir=tmp_path / "alone").result(60)
    lm = tiny_lm()
    first = train(lm, max_steps=5000)
    queued = train(lm if same_model else None)
    assert queued.state is RunState.QUEUED
    (found,) = [record for record in list_runs(tmp_path / "runs") if record.id == queued.id]
    assert found.state is RecordState.RUNNING
    with pytest.raises(RunError, match="waits in the queue here; it starts by itself"):
        resume(found, tiny_lm(), tiny_task())
    left = after_a_kill(queued.folder, tmp_path / "left")
    first.stop()
    assert queued.result(60).losses == alone.losses, "as if it had not been told of before"
    (record,) = list_runs(left.parent)
    assert (record.id, record.state) == (queued.id, RecordState.CUT_OFF)
    assert resume(record, tiny_lm(), tiny_task()).result(60).losses == alone.losses


def test_a_run_that_leaves_the_queue_leaves_nothing(train, tmp_path):
    first = train(max_steps=5000)
    queued = train()
    queued.stop()
    assert [record.id for record in list_runs(tmp_path / "runs")] == [first.id]
    assert not queued.folder.exists()


def test_a_start_that_raises_leaves_nothing_and_can_be_tried_again(train, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="nonsense"):
        train(config=LoraConfig(target_modules=["nonsense"]))
    assert list((tmp_path / "runs").iterdir()) == []
    run = train(start=False)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device; free some space"):
            run.start()
    assert list((tmp_path / "runs").iterdir()) == []
    assert len(run.start().result(60).losses) == 3
    assert list_runs(tmp_path / "runs")[0].state is RecordState.DONE


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunError])
def test_queuing_that_is_interrupted_leaves_nothing(train, tmp_path, monkeypatch, error):
    first, second = train(max_steps=5000), train(start=False)

    def interrupted(*_):
        raise error("now")

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write_config", interrupted)
        with pytest.raises(error):
            second.start()
    assert [record.id for record in list_runs(tmp_path / "runs")] == [first.id]
    second.start()
    first.stop()
    assert len(second.result(60).losses) == 3


def test_a_queued_run_that_cannot_begin_is_listed_as_failed(train, tmp_path):
    first = train(max_steps=5000)
    broken = train(config=LoraConfig(target_modules=["nonsense"]))
    first.stop()
    with pytest.raises(RunError, match="nonsense"):
        broken.result(60)
    (record,) = [own for own in list_runs(tmp_path / "runs") if own.id == broken.id]
    assert record.state is RecordState.FAILED
    assert "nonsense" in record.summary["problem"]
