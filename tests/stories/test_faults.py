"""What happens around a run, simulated: full disks, spent memory, losses that climb, trackers."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from lora_lab.checkpoint import load_adapter
from lora_lab.configs import TrainingConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.redaction import redacted
from lora_lab.runs import checkpoints as checkpoints_module
from lora_lab.runs.records import RecordState, list_runs
from lora_lab.tasks.families.api import longest_example
from lora_lab.training import device_memory
from lora_lab.training import gpu_memory as memory_module
from lora_lab.training.api import train
from lora_lab.training.divergence import PATIENCE, RISE, Divergence, DivergingError
from lora_lab.training.gpu_memory import CAP, Forecast, GpuMemory, cap_bytes, largest_batch
from lora_lab.training.resume import resume
from lora_lab.training.snapshot import RunState
from lora_lab.training.trackers import silent_thread
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task, until


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def begin(folder, lm=None, **training):
    settings = {"max_steps": 14, "learning_rate": 1e-2, "eval_examples": 0, "save_steps": 5}
    return train(lm or tiny_lm(), tiny_task(), CONFIG, output_dir=folder, **settings | training)


def last_checkpoint_opens(run):
    step, folder = checkpoints_module.folders(run.folder)[0]
    assert load_adapter(tiny_lm().model, folder).parameters()
    return step


# The disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_a_checkpoint_ends_in_a_message_and_can_be_gone_on_from(
    tmp_path, monkeypatch, code
):
    alone = begin(tmp_path / "alone").result(60)
    save, calls = torch.save, []

    def refusing(value, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half of it")
            raise OSError(code, os.strerror(code))
        save(value, path)

    monkeypatch.setattr(torch, "save", refusing)
    run = begin(tmp_path / "refused")
    with pytest.raises(RunError, match=rf"cannot write .*step-10: {os.strerror(code)}; free some"):
        run.result(60)
    assert run.state is RunState.FAILED
    assert last_checkpoint_opens(run) == 5
    assert list_runs(tmp_path / "refused")[0].state is RecordState.FAILED
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert resume(run.folder, tiny_lm(), tiny_task()).result(60).losses == alone.losses


def test_a_disk_that_takes_nothing_any_more_still_ends_in_a_message(tmp_path, monkeypatch):
    run = begin(tmp_path, max_steps=5000)
    until(lambda: checkpoints_module.folders(run.folder))

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        run.result(60)
    monkeypatch.undo()
    assert last_checkpoint_opens(run) >= 5
    assert list_runs(tmp_path)[0].state is RecordState.CUT_OFF, "not even the summary was taken"


# Diverging ----------------------------------------------------------------------------------------


def test_a_loss_has_diverged_when_it_stays_ten_nats_above_its_beginning():
    start = [3.0, 2.0, 2.5, 50.0, 2.4]  # median 2.5; one of them may be anything
    high = 2.5 + RISE + 0.1
    seen = Divergence([*start, *[high] * (PATIENCE - 1)])
    seen.check(24, high)
    seen.add(high)
    with pytest.raises(DivergingError, match=r"was 2\.50 at first and is 12\.60 at step 25, 20 st"):
        seen.check(25, high)
    # One step below begins the count anew, and noise or a bad batch is none.
    calm = Divergence([*start, *[high] * (PATIENCE - 1), 12.4, *[high] * (PATIENCE - 1)])
    calm.check(44, high)
    assert Divergence(start).limit == 12.5


def test_a_diverging_run_stops_and_gives_back_the_adapter_from_before(tmp_path):
    lm = tiny_lm()
    calls = []

    def climb(_module, _inputs, output):
        calls.append(1)  # one pass a step; from the ninth on every wrong answer is dear
        return output * 200 if len(calls) > 8 else output

    lm.model.lm_head.register_forward_hook(climb)
    run = begin(tmp_path, lm, max_steps=200, learning_rate=1e-4)
    with pytest.raises(RunError, match=r"the loss diverged: it was \d+\.\d\d at first"):
        run.result(120)
    problem = run.snapshot.failure
    assert "the adapter is as it was after step 5;" in problem.remedy, "kept before the climb"
    assert "lower learning_rate than 0.0001" in problem.remedy
    assert len(run.losses) == 8 + PATIENCE
    at_5 = load_adapter(tiny_lm().model, run.folder / "checkpoints" / "step-5")
    saved = load_adapter(tiny_lm().model, run.folder / "adapter")
    for live, kept, file in zip(
        run.adapter.parameters(), at_5.parameters(), saved.parameters(), strict=True
    ):
        assert torch.equal(live, kept)
        assert torch.equal(live, file)
    with pytest.raises(RunError, match="failed by itself and would do so again"):
        resume(run.folder, tiny_lm(), tiny_task())


# Memory -------------------------------------------------------------------------------------------


def bytes_for(batch: int) -> int:
    lm = tiny_lm()
    length = longest_example(lm, tiny_task(), 128).read
    forecast = Forecast(lm.model, CONFIG, TrainingConfig(), length, torch.device("cpu"))
    return forecast(batch)


def test_the_batch_that_would_have_fitted_is_proposed_from_the_dry_run(tmp_path, monkeypatch):
    lm = tiny_lm()
    room = GpuMemory(free=bytes_for(3) + 1, total=10**9, others=0)
    monkeypatch.setattr(device_memory, "available_memory", lambda: room.free)
    forward = type(lm.model.model.layers[0].mlp).forward

    def spent(self, x):
        if self.training and x.shape[0] > 3 and not isinstance(x, FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, x)

    monkeypatch.setattr(type(lm.model.model.layers[0].mlp), "forward", spent)
    run = begin(tmp_path, lm=lm, per_device_train_batch_size=8, gradient_accumulation_steps=3)
    with pytest.raises(RunError, match="out of memory"):
        run.result(60)
    problem = run.snapshot.failure
    # 24 examples a step: 3 is the largest divisor that fits.
    assert problem.proposal == {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 8,
    }
    assert "the dry run says it fits" in problem.remedy
    taken = run.training.replace(**problem.proposal).to_dict()
    again = train(lm, tiny_task(), CONFIG, output_dir=tmp_path, **taken)
    assert len(again.result(60).losses) == 14


@pytest.mark.parametrize(("free", "size"), [(0, None), (99, None), (100, 1), (399, 3), (10_000, 7)])
def test_the_largest_divisor_that_fits(free, size):
    training = TrainingConfig(per_device_train_batch_size=8, gradient_accumulation_steps=21)
    found = largest_batch(training, lambda batch: 100 * batch, free, largest=7)
    if size is None:
        assert found == {}
    else:
        assert found["per_device_train_batch_size"] == size
        assert size * found["gradient_accumulation_steps"] == 168


def test_what_will_not_fit_is_refused_before_the_first_step(tmp_path, monkeypatch):
    there = GpuMemory(free=bytes_for(2) + 1, total=8 * 2**30, others=5 * 2**30)
    monkeypatch.setattr(device_memory, "gpu_memory", lambda _: there)
    run = begin(tmp_path)
    with pytest.raises(RunError, match="training will not fit") as caught:
        run.result(60)
    assert "5 GiB in use by others" in str(caught.value)
    assert "take per_device_train_batch_size=2 with gradient_accumulation_steps=4" in str(
        caught.value
    )
    assert run.snapshot.failure.proposal["per_device_train_batch_size"] == 2
    assert run.losses == ()
    fits = begin(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert len(fits.result(60).losses) == 14


def test_the_cap_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv(CAP, raising=False)
    assert cap_bytes() is None
    monkeypatch.setenv(CAP, "1.5")
    assert cap_bytes() == 3 * 2**29
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv(CAP, wrong)
        with pytest.raises(ConfigError, match=CAP):
            cap_bytes()


def test_the_cap_limits_the_allocator_and_what_counts_as_free(monkeypatch):
    fractions = []
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "mem_get_info", lambda _: (6 * 2**30, 16 * 2**30))
    monkeypatch.setattr(cuda, "memory_reserved", lambda _: 3 * 2**30)
    monkeypatch.setattr(cuda, "memory_allocated", lambda _: 2 * 2**30)
    monkeypatch.setattr(
        cuda, "set_per_process_memory_fraction", lambda share, _: fractions.append(share)
    )
    monkeypatch.setattr("lora_lab.training.gpu_memory.other_processes", lambda _: ())
    device = torch.device("cuda:0")
    monkeypatch.delenv(CAP, raising=False)
    assert memory_module.gpu_memory(device) == GpuMemory(7 * 2**30, 16 * 2**30, 7 * 2**30)
    monkeypatch.setenv(CAP, "4")
    assert memory_module.gpu_memory(device) == GpuMemory(
        2 * 2**30, 16 * 2**30, 7 * 2**30, capped=True
    )
    memory_module.apply_cap(device)
    assert fractions == [0.25]


# Steered from three threads -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_real_runs_steered_from_three_threads_end_with_the_losses_of_the_calm_one(tmp_path, seed):
    alone = begin(tmp_path / "alone", max_steps=20).result(60)
    run = begin(tmp_path / "steered", max_steps=20)
    failures: list[BaseException] = []

    def steer(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        for _ in range(15):
            time.sleep(rng.uniform(0, 0.02))
            try:
                getattr(run, rng.choice(["start", "pause", "resume", "checkpoint", "resume"]))()
            except RunError:
                pass
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=steer, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    if not run.state.final:
        run.resume()
    assert run.result(60).losses == alone.losses


# Trackers and tokens ------------------------------------------------------------------------------


def test_an_unknown_tracker_and_one_whose_package_is_missing_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"report_to names 'wandbd'; use one or more of trackio"):
        TrainingConfig(report_to="wandbd")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"report_to='mlflow' needs .* pip install mlflow, or"):
        begin(tmp_path, report_to=["mlflow"])
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_gets_every_step_on_the_runs_thread_and_prints_nothing(
    tmp_path, monkeypatch, capfd
):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    from lora_lab.training import checks

    heard, looks = [], []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            print("see your run at https://…")
            heard.append(("begin", args.run_name, threading.current_thread().name))

        def on_log(self, args, state, control, logs=None, **_):
            print("logged")
            if "loss" in logs:
                heard.append((state.global_step, logs["loss"], logs["learning_rate"]))
            else:
                looks.append(logs.keys())

        def on_train_end(self, *_, **__):
            heard.append("end")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    monkeypatch.setattr(checks, "check_trackers", lambda _: None)
    run = begin(tmp_path, report_to="trackio")
    result = run.result(60)
    assert heard[0] == ("begin", run.id, f"lora-lab {run.id}")
    assert [row[:2] for row in heard[1:-1]] == list(result.losses)
    assert heard[-1] == "end"
    assert looks
    assert all(keys == {"sigma_1", "effective_rank", "peak_memory"} for keys in looks)
    assert capfd.readouterr().out == ""
    assert json.loads((run.folder / "config.json").read_text())["training"]["report_to"] == [
        "trackio"
    ]


def test_only_the_thread_in_the_block_is_silenced(capsys):
    with silent_thread():
        print("mine")
        other = threading.Thread(target=print, args=("theirs",))
        other.start()
        other.join()
    print("after")
    assert capsys.readouterr().out == "theirs\nafter\n"


def test_what_is_named_or_shaped_like_a_token_is_redacted(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "0123456789")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("SOME_TOKEN_FILE", "/home/somebody/token")
    assert redacted("key 0123456789, abc, /home/somebody/token") == (
        "key [redacted], abc, /home/somebody/token"
    )
    assert redacted("hf_" + "x" * 34) == "[redacted]"
    assert redacted("hf_transfer is fast") == "hf_transfer is fast"
