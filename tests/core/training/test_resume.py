"""Runs that were stopped or failed go on from their last checkpoint, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lora_lab as ll
from lora_lab import methods
from lora_lab.configs import (
    AdaLoraConfig,
    BitFitConfig,
    FullConfig,
    HeadConfig,
    LoraConfig,
    PrefixEmbedConfig,
    TrainingConfig,
)
from lora_lab.errors import RunError, TaskError
from lora_lab.models import LoadedModel
from lora_lab.runs.checkpoints import folders, newest
from lora_lab.runs.lock import RunLock
from lora_lab.runs.records import RecordState, list_runs
from lora_lab.tasks import load_task
from lora_lab.training.api import train
from lora_lab.training.resume import resume
from lora_lab.training.snapshot import RunState
from tests.helpers.run_configs import rewrite
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_run import tiny_lm, tiny_task, until

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, target_modules=["q", "v", "down"])


def begin(folder: Path, config=LORA, lm=None, task=None, **training):
    settings = {"max_steps": 14, "learning_rate": 1e-2, "eval_examples": 0, "save_steps": 5}
    settings["max_length"] = 64  # beside learned tokens, the model has 128 positions
    return train(
        lm or tiny_lm(),
        task or tiny_task(),
        config,
        output_dir=folder,
        **{**settings, **training},
    )


def stopped(folder: Path, *, after: int = 7, **settings):
    """A run that was stopped after some step, at least `after`."""
    run = begin(folder, **settings)
    until(lambda: run.snapshot.step >= after or run.state.final)
    run.stop()
    run.result(60)
    return run


# Stopped ------------------------------------------------------------------------------------------

METHODS = {
    "LoRA": LORA,
    "PiSSA": LoraConfig(r=4, target_modules=["q", "v"], init_lora_weights="pissa_niter_2"),
    "DoRA": LoraConfig(r=4, target_modules=["q"], use_dora=True),
    "AdaLoRA, cutting": AdaLoraConfig(target_r=2, init_r=4, tinit=2, tfinal=2, deltaT=2),
    "AdaLoRA, final": AdaLoraConfig(target_r=2, init_r=4, tinit=1, tfinal=10, deltaT=1),
    "FT": FullConfig(),
    "BitFit": BitFitConfig(new_biases=True),
    "LoRA+PE": [LORA, PrefixEmbedConfig(prefix_length=2)],
}


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS.keys())
def test_a_stopped_run_goes_on_with_the_same_losses(tmp_path, config):
    alone = begin(tmp_path / "alone", config).result(120)
    run = stopped(tmp_path / "stopped", config=config)
    steps = len(run.losses)
    assert 7 <= steps < 14
    again = resume(run.folder, tiny_lm(), tiny_task())
    result = again.result(120)
    assert again.steps_before == run.losses, "the checkpoint of the stop"
    assert result.losses == alone.losses
    alone_state = torch.load(newest(alone.folder).folder / "state.pt", weights_only=True)
    assert alone_state["step"] == 10
    assert again.folder == run.folder
    assert again.snapshot.losses == alone.losses
    assert list_runs(tmp_path / "stopped")[0].state is RecordState.DONE


class Batched(torch.nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view_as(x)


def batched_lm() -> LoadedModel:
    lm = tiny_lm()
    lm.model.model.norm = Batched(lm.model.config.hidden_size)
    return lm


def test_running_statistics_and_the_bases_biases_go_on_too(tmp_path):
    config = LORA.replace(bias="all")
    alone = begin(tmp_path / "alone", config, batched_lm())
    losses = alone.result(120).losses
    run = stopped(tmp_path / "stopped", config=config, lm=batched_lm())
    again = resume(run.folder, batched_lm(), tiny_task())
    assert again.result(120).losses == losses
    norms = [own.model.model.norm for own in (alone, again)]
    assert norms[0].num_batches_tracked == 14
    assert norms[0].bias.abs().min() > 0  # it began at zero
    for key, tensor in norms[0].state_dict().items():
        assert torch.equal(norms[1].state_dict()[key], tensor)
    read = batched_lm().model
    ll.load_adapter(read, again.folder / "adapter")
    assert torch.equal(read.model.norm.running_var, norms[0].running_var)


def test_an_earlier_all_linear_goes_on_with_the_layers_alone(tmp_path):
    lm, task = tiny_classifier(), tiny_classes()
    layers = [site.name for site in ll.anatomy(lm.model).grid_sites]
    config = LoraConfig(r=2, target_modules=layers)
    alone = begin(tmp_path / "alone", config, tiny_classifier(), task).result(120)
    run = stopped(tmp_path / "stopped", config=config, lm=lm, task=task)
    rewrite(run.folder, lambda told: told["configs"][0].update(target_modules="all-linear"))
    again = resume(run.folder, tiny_classifier(), task)
    assert again.result(120).losses == alone.losses
    assert list(again.adapter.sites) == layers


def test_classes_stay_in_the_order_that_a_run_was_begun_with(tmp_path):
    task, more = tiny_classes(), {"config": HeadConfig(), "eval_examples": 9}
    alone = begin(tmp_path / "alone", lm=tiny_classifier(), task=task, **more).result(120)
    run = stopped(tmp_path / "stopped", lm=tiny_classifier(), task=task, **more)
    now = dataclasses.replace(task, labels=task.labels[::-1])
    result = resume(run.folder, tiny_classifier(), now).result(120)
    assert (result.losses, result.metrics) == (alone.losses, alone.metrics)


def test_accumulation_scores_and_samples_are_as_if_it_had_never_stopped(tmp_path):
    settings = {"gradient_accumulation_steps": 3, "eval_examples": 3}
    settings["per_device_train_batch_size"] = 5
    alone = begin(tmp_path / "alone", **settings).result(120)
    run = stopped(tmp_path / "stopped", **settings)
    result = resume(run.id, tiny_lm(), tiny_task(), output_dir=tmp_path / "stopped").result(120)
    assert result.losses == alone.losses
    assert result.metrics == alone.metrics
    assert result.samples == alone.samples
    assert (
        result.seconds
        > json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[6])["seconds"]
    )


def test_the_spectra_of_dropped_steps_are_dropped_too(tmp_path):
    run = stopped(tmp_path, after=12, save_steps=4)
    for step, folder in folders(run.folder):
        if step > 8:
            (folder / "state.pt").unlink()
    again = resume(run.folder, tiny_lm(), tiny_task())
    again.result(60)
    record = list_runs(tmp_path)[0]
    opened = record.open()
    assert [step for step, _ in opened.losses] == list(range(1, 15))
    assert opened.losses == again.losses
    steps = opened.history.steps.tolist()
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == 14
    assert opened.adapter_folder == run.folder / "adapter"
    assert 8 in opened.checkpoints


def test_a_run_without_a_checkpoint_begins_again(tmp_path):
    alone = begin(tmp_path / "alone", save_steps=0).result(60)
    run = begin(tmp_path / "failed", save_steps=0)
    run.stop()
    run.wait(60)
    (run.folder / "summary.json").unlink()
    for _, folder in folders(run.folder):
        (folder / "state.pt").unlink()
    record = list_runs(tmp_path / "failed")[0]
    assert record.state is RecordState.CUT_OFF
    assert record.resume(tiny_lm(), tiny_task()).result(60).losses == alone.losses


def test_no_code_of_a_checkpoint_runs(tmp_path):
    run = stopped(tmp_path)

    class Payload:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    for _, folder in folders(run.folder):
        torch.save({"format": 1, "step": 5, "x": Payload()}, folder / "state.pt")
    with pytest.raises(RunError, match=r"state\.pt cannot be read"):
        resume(run.folder, tiny_lm(), tiny_task())
    assert not (tmp_path / "ran").exists()


def test_a_run_asked_to_checkpoint_does_so_at_the_next_step(tmp_path):
    run = begin(tmp_path, save_steps=0, max_steps=500)
    until(lambda: run.snapshot.step >= 2)
    run.checkpoint()
    until(lambda: folders(run.folder))
    run.pause()
    until(lambda: run.state is RunState.PAUSED)
    step = run.snapshot.step
    run.checkpoint()
    run.resume()
    until(lambda: folders(run.folder)[0][0] >= step)
    run.stop()
    run.result(60)


def test_a_minute_without_a_checkpoint_brings_one(tmp_path, monkeypatch):
    from lora_lab.training import worker

    monkeypatch.setattr(worker, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(worker, "_SAVE_SHARE", 0.0)
    run = begin(tmp_path, save_steps=1000)
    run.result(60)
    kept = [step for step, _ in folders(run.folder)]
    assert kept == [13, 12], "older ones that only time brought are gone"


# Without arguments --------------------------------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path):
    """A model folder and a data file, as a user has them."""
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"ask": e.prompt, "say": e.completion} for e in tiny_task().train]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path


def from_disk(folder: Path):
    task = load_task(folder / "data.jsonl", prompt="ask", completion="say", seed=3)
    return ll.load_model(folder / "model", device="cpu"), task


def test_a_run_of_files_goes_on_without_arguments(on_disk, monkeypatch):
    lm, task = from_disk(on_disk)
    alone = begin(on_disk / "alone", lm=lm, task=task).result(60)
    monkeypatch.chdir(on_disk)
    lm, _ = from_disk(on_disk)
    run = stopped(
        on_disk / "runs",
        lm=lm,
        task=load_task("data.jsonl", prompt="ask", completion="say", seed=3),
    )
    monkeypatch.chdir("/")
    assert resume(run.folder).result(60).losses == alone.losses


def test_a_vanished_data_file_is_a_message_and_the_checkpoint_opens(on_disk):
    lm, task = from_disk(on_disk)
    run = stopped(on_disk / "runs", lm=lm, task=task)
    (on_disk / "data.jsonl").unlink()
    with pytest.raises(TaskError):
        resume(run.folder)
    fresh, _ = ll.load_model(on_disk / "model", device="cpu"), None
    _, folder = folders(run.folder)[0]
    loaded = ll.load_adapter(fresh.model, folder)
    for mine, other in zip(run.adapter.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_changed_data_are_refused(on_disk):
    lm, task = from_disk(on_disk)
    run = stopped(on_disk / "runs", lm=lm, task=task)
    text = (on_disk / "data.jsonl").read_text()
    (on_disk / "data.jsonl").write_text(text.replace("a ", "b "))
    with pytest.raises(RunError, match=r"training examples of data\.jsonl are not those of run"):
        resume(run.folder)
    (on_disk / "data.jsonl").write_text(text)
    resume(run.folder).result(60)


def test_a_model_and_a_task_of_the_users_own_are_asked_for(tmp_path):
    run = stopped(tmp_path)
    with pytest.raises(RunError, match=r"trained tiny-llama, a model of your own; pass it"):
        resume(run.folder)
    with pytest.raises(RunError, match=r"trained on letters, a task of your own; pass it"):
        resume(run.folder, tiny_lm())


# Refusals -----------------------------------------------------------------------------------------


def test_another_base_is_refused(tmp_path):
    run = stopped(tmp_path)
    with pytest.raises(RunError, match="is not the base model of run"):
        resume(run.folder, tiny_lm(seed=1), tiny_task())
    half = tiny_lm()
    half.model.to(torch.bfloat16)
    with pytest.raises(RunError, match=r"tiny-llama \(bfloat16\) is not the base model of run"):
        resume(run.folder, LoadedModel.given(half.model, half.tokenizer, "tiny-llama"), tiny_task())


def test_the_model_of_the_stopped_run_itself_will_do(tmp_path):
    alone = begin(tmp_path / "alone").result(60)
    lm = tiny_lm()
    run = stopped(tmp_path / "stopped", lm=lm)
    methods.merge(lm.model)
    methods.unmerge(lm.model)
    with pytest.warns(UserWarning, match="it is replaced"):
        again = resume(run.folder, lm, run.task)
    assert again.result(60).losses == alone.losses


def test_done_runs_and_runs_of_other_processes_are_refused(tmp_path):
    run = begin(tmp_path)
    assert list_runs(tmp_path)[0].state is RecordState.RUNNING
    with pytest.raises(RunError, match="is running here"):
        resume(run.folder, tiny_lm(), tiny_task())
    run.result(60)
    with pytest.raises(RunError, match=r"is done; ll\.train\(lm, task, start_from="):
        resume(run.folder, tiny_lm(), tiny_task())
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom lora_lab.runs.lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, run.folder], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "held\n"
        assert list_runs(tmp_path)[0].state is RecordState.ELSEWHERE
        with pytest.raises(RunError, match="running in another process; stop it there first"):
            resume(run.folder, tiny_lm(), tiny_task())
        with pytest.raises(RunError, match=rf"is running in process {child.pid} on "):
            RunLock(run.folder).acquire()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert list_runs(tmp_path)[0].state is RecordState.DONE, "the lock went with its holder"


def test_unknown_classes_and_fields_are_refused(tmp_path):
    run = stopped(tmp_path)
    for broken, said in (
        ({"configs": [{"class": "os.system"}]}, "names the class 'os.system', which is none of"),
        ({"configs": [{"class": "TrainingConfig"}]}, "names the class 'TrainingConfig'"),
        ({"configs": [{"class": "LoraConfig", "cmd": 1}]}, "LoraConfig has no field 'cmd'"),
        ({"configs": []}, "names no method"),
        ({"configs": [{"class": "LoraConfig"}], "training": {"max_steps": -2}}, "max_steps is -2"),
    ):
        rewrite(run.folder, lambda told, broken=broken: told.update(broken))
        with pytest.raises(RunError, match=said):
            resume(run.folder, tiny_lm(), tiny_task())


def test_links_in_a_runs_folder_are_refused(tmp_path):
    run = stopped(tmp_path / "runs")
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    (run.folder / "metrics.jsonl").unlink()
    (run.folder / "metrics.jsonl").symlink_to(victim)
    with pytest.raises(RunError, match=r"metrics\.jsonl is a link; copy the run's folder"):
        resume(run.folder, tiny_lm(), tiny_task())
    assert victim.read_text() == "mine\n"


@pytest.mark.parametrize("name", ["nothing", "../nothing", ""])
def test_a_run_that_is_not_there_is_one_line(tmp_path, name):
    with pytest.raises(RunError, match="there is no run in"):
        resume(name, output_dir=tmp_path)


def test_training_settings_come_back_as_they_were(tmp_path):
    run = stopped(tmp_path, weight_decay=0.1, loraplus_lr_ratio=4.0)
    again = resume(run.folder, tiny_lm(), tiny_task(), start=False)
    assert again.training == run.training == TrainingConfig(**again.training.to_dict())
    assert again.configs == run.configs
