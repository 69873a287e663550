"""Two processes that train together (gloo): the losses of one, one writer, one end for both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lora_lab.configs import TrainingConfig
from lora_lab.errors import ConfigError, RunError
from lora_lab.runs.records import list_runs
from lora_lab.runs.run_file import RunConfig
from lora_lab.training import processes
from lora_lab.training.api import make_run
from lora_lab.training.replicas import check_together
from lora_lab.training.resume import resume
from lora_lab.training.snapshot import RunState
from tests.helpers.dispatched import SPREAD, spread_lm
from tests.helpers.several_processes import A_FROZEN, METHODS, begin, ragged_task, stopped
from tests.helpers.tiny_files import tiny_recipe
from tests.helpers.tiny_run import tiny_lm

ROOT = Path(__file__).parents[3]  # the scripts import their neighbours as tests.helpers.…
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_two_processes(script: str, folder: Path) -> dict:
    """Run a script of this folder as two ranks; return what rank 0 left in found.json."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.two_ranks", script, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT | meeting,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate(timeout=200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 0, said[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("together")
    stopped(begin(folder / "begun by one", max_steps=12), 5)
    return in_two_processes("several_processes.py", folder), folder


def same(found, expected) -> None:
    steps, losses = zip(*found, strict=True)
    assert list(steps) == [step for step, _ in expected]
    # Sums in another order, and Adam's division by gradients near zero.
    assert losses == pytest.approx([loss for _, loss in expected], rel=2e-5)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_take_the_steps_of_one(together, tmp_path, name):
    found, _ = together
    alone = begin(tmp_path, METHODS[name], batch=8)
    same(found[name]["losses"], alone.start().result(120).losses)
    assert not found[name]["apart"]


def test_passes_are_shared_out_as_well(together, tmp_path):
    found, _ = together
    alone = begin(tmp_path, batch=8, eval_examples=3).start().result(120)
    same(found["accumulated"]["losses"], alone.losses)
    assert found["accumulated"]["metrics"] == pytest.approx(alone.metrics, rel=1e-4)


def test_a_base_in_shards_trains_as_a_whole_one(together, tmp_path):
    found, _ = together
    alone = begin(tmp_path, batch=8, eval_examples=3)
    result = alone.start().result(120)
    same(found["in shards"]["losses"], result.losses)
    assert found["in shards"]["metrics"] == pytest.approx(result.metrics, rel=1e-4)
    assert not found["in shards"]["apart"]
    assert "the base is sharded over 2 processes (FSDP)" in found["in shards"]["notes"]
    adapter = sum(p.numel() for p in alone.adapter.parameters()) * 4
    whole = alone.snapshot.memory.weights
    assert found["in shards"]["local bytes"] < adapter + 0.55 * (whole - adapter)


def test_what_an_adapter_does_not_learn_is_no_part_of_the_base_in_shards(together, tmp_path):
    """LoRA-FA's A: frozen, and whole in each process."""
    found, _ = together
    alone = begin(tmp_path, A_FROZEN, batch=8, max_steps=2).start().result(120)
    same(found["A frozen"]["losses"], alone.losses)
    assert not found["A frozen"]["apart"]


def test_each_process_has_a_gpu_of_its_own(together, tmp_path):
    """What a run on GPUs does, on a CPU that says of itself that it is one."""
    found, _ = together
    same(found["by CUDA's ways"]["losses"], begin(tmp_path, batch=8).start().result(120).losses)
    assert not found["by CUDA's ways"]["apart"]
    assert found["by CUDA's ways"]["moved"] == ["cpu:0"]


def test_adapters_that_have_come_apart_are_told(together):
    found, _ = together
    said = (
        "the adapters of the processes have come apart, and the first one's is saved: launch them"
    )
    assert any(note.startswith(said) for note in found["apart"])
    assert not any(note.startswith(said) for note in found["in shards"]["notes"])


@pytest.mark.parametrize(
    ("joined", "sharding", "cuda", "device", "expected"),
    [
        (False, False, True, "cuda:1", "cuda:1"),  # a notebook: the model stays where it is
        (True, False, True, "cuda:0", "cuda:3"),
        (True, False, True, "cpu", "cpu"),  # asked for
        (True, True, True, "cpu", "cuda:3"),  # in shards it waits on the CPU
        (True, True, False, "cpu", "cpu"),
    ],
)
def test_where_a_process_trains(monkeypatch, joined, sharding, cuda, device, expected):
    monkeypatch.setattr(processes, "_joined", lambda: joined)
    monkeypatch.setattr(processes, "_sharding", sharding)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert processes.training_device(torch.device(device)) == torch.device(expected)


@pytest.mark.parametrize("places", ["its own", "another's GPU", "in shards"])
def test_a_model_that_is_laid_out_for_one_process_is_refused(monkeypatch, tmp_path, places):
    lm = spread_lm(tmp_path, SPREAD["a block on the disk"])
    home = "cuda:1" if places == "another's GPU" else "cpu"
    begin(tmp_path, lm=lm)  # one process may
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "sharded", lambda: places == "in shards")
    monkeypatch.setattr(processes, "training_device", lambda _: torch.device(home))
    if places == "its own":
        begin(tmp_path, lm=lm)
        return
    before = set(tmp_path.iterdir())
    with pytest.raises(ConfigError) as caught:
        begin(tmp_path, lm=lm)
    assert str(caught.value) == (
        "the model is laid out on cpu (device_map), and 2 processes train together, each on a "
        "device of its own: load it without device_map (FSDP cuts what one GPU cannot hold), or "
        "launch one process"
    )
    assert set(tmp_path.iterdir()) == before


def test_a_model_on_two_devices_is_refused_whoever_put_it_there(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta"))
    check_together(model)
    monkeypatch.setattr(processes, "count", lambda: 4)
    with pytest.raises(ConfigError, match=r"laid out on cpu and meta .* 4 processes"):
        check_together(model)
    check_together(model[0])


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError) as caught, processes.joined():
        pass
    assert str(caught.value) == (
        "process 2 of this machine has no GPU of its own, there are 2; launch 2 processes here, or "
        "hide the GPUs (CUDA_VISIBLE_DEVICES=)"
    )


def test_one_of_them_writes(together):
    found, folder = together
    assert found["files"] == [
        "adapter", "config.json", "lock.json", "metrics.jsonl", "samples.json", "sites.json",
        "spectra.npy", "summary.json",
    ]  # fmt: skip
    runs = list((folder / "methods").iterdir())
    assert len(runs) == len(METHODS)
    for run in runs:
        rows = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == list(range(1, 9))


def test_all_stop_after_the_same_step_when_one_is_told_to(together):
    found, _ = together
    assert [step for step, _ in found["stopped"]["losses"]] == [1, 2, 3, 4, 5]
    summary = Path(found["stopped"]["folder"]) / "summary.json"
    assert json.loads(summary.read_text())["state"] == "stopped"


def test_what_two_began_one_goes_on_with(together, tmp_path):
    found, _ = together
    alone = begin(tmp_path, batch=8, max_steps=12).start().result(120)
    again = resume(found["stopped"]["folder"], tiny_lm(), ragged_task())
    assert again.training.per_device_train_batch_size == 4
    assert again.training.gradient_accumulation_steps == 2
    same(again.result(120).losses, alone.losses)


def test_what_one_began_two_go_on_with(together, tmp_path):
    found, _ = together
    alone = begin(tmp_path, batch=8, max_steps=12).start().result(120)
    same(found["resumed"]["losses"], alone.losses)
    assert found["resumed"]["batch"] == 4
    assert not found["resumed"]["apart"]


def test_the_error_of_one_ends_the_other(together):
    found, _ = together
    assert "failed: " in found["failed"]


def test_a_pause_may_last_longer_than_the_others_wait_in_silence_and_a_stop_ends_it(tmp_path):
    found = in_two_processes("paused_processes.py", tmp_path)
    alone = begin(tmp_path / "alone", batch=8).start().result(120)
    for who in ("the first", "the second"):
        assert found[who]["paused for"] > 2 * found["patience"]
        assert found[who]["state while paused"] == "paused"
        assert found[who]["steps while paused"] == 0
        same(found[who]["losses"], alone.losses)
    assert found["stopped by the other"] == "done"


def test_a_run_file_under_accelerate_launch_in_shards(tmp_path):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(recipe))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", str(free_port())]
    done = subprocess.run(
        [*launch, "-m", "lora_lab", "train", tmp_path / "run.yaml", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout)  # one object: the second process says nothing
    assert said["state"] == RunState.DONE
    folder = Path(said["folder"])
    assert list((tmp_path / "runs").iterdir()) == [folder]
    assert json.loads((folder / "config.json").read_text())["processes"] == 2
    (record,) = list_runs(tmp_path / "runs")
    assert "the base is sharded over 2 processes (FSDP)" in record.summary["notes"]
    assert [row["tokens"] for row in record.open().rows] == [80] * 4  # 8 examples of 10

    recipe["training"]["per_device_train_batch_size"] = 8
    recipe["output_dir"] = str(tmp_path / "alone")
    alone = make_run(RunConfig.from_dict(recipe)).start().result(120)
    same(record.open().losses, alone.losses)
    assert said["metrics"] == pytest.approx(alone.metrics, rel=1e-4)


@pytest.mark.parametrize(
    ("begun", "now", "expected"),
    [((8, 1, 1), 2, (4, 1)), ((4, 1, 2), 1, (4, 2)), ((6, 2, 1), 3, (4, 1)), ((3, 1, 4), 2, (3, 2)),
     ((5, 3, 1), 3, (5, 1)), ((2, 3, 2), 4, (1, 3))],
)  # fmt: skip
def test_another_number_of_processes_takes_as_many_examples_a_step(
    monkeypatch, begun, now, expected
):
    monkeypatch.setattr(processes, "count", lambda: now)
    batch, passes, count = begun
    training = TrainingConfig(per_device_train_batch_size=batch, gradient_accumulation_steps=passes)
    new = processes.shared_out(training, count)
    found = new.per_device_train_batch_size, new.gradient_accumulation_steps
    assert found == expected
    assert found[0] * found[1] * now == batch * passes * count


def test_what_cannot_be_shared_out_is_refused_with_what_can(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 4)
    with pytest.raises(RunError, match=r"6 examples a step.*4 processes.*one of 1, 2, 3, 6"):
        processes.shared_out(TrainingConfig(per_device_train_batch_size=6), 1)
