"""Trackers that are really there, offline: what they write, and what they do not."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

from lora_lab.runs.training_config import TrainingConfig
from lora_lab.training import checks, trackers
from lora_lab.training.api import train
from lora_lab.training.snapshot import Spectra
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

CPU = torch.device("cpu")


def records(path: Path) -> Iterator[bytes]:
    """The payloads of a TFRecord file: length (8), its checksum (4), payload, its checksum (4)."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def test_tensorboard_gets_the_losses_of_every_step_and_no_token(tmp_path, monkeypatch, capfd):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    token = "hf_" + "s" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    lm = tiny_lm()
    lm.model.config._name_or_path = f"https://me:{token}@host/m?token=and-another-one"
    run = train(
        lm, tiny_task(), CONFIG, output_dir=tmp_path, max_steps=6, eval_examples=0,
        report_to="tensorboard",
    )  # fmt: skip
    assert token in lm.model.config._name_or_path
    result = run.result(60)
    (path,) = run.folder.rglob("events.out.tfevents.*")
    events = [Event.FromString(record) for record in records(path)]
    losses = {
        event.step: value.simple_value
        for event in events
        for value in event.summary.value
        if value.tag == "train/loss"
    }
    assert losses == {step: pytest.approx(loss, rel=1e-6) for step, loss in result.losses}
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(b"host/m?token=" in file.read_bytes() for file in written)
    assert not any(token.encode() in file.read_bytes() for file in written)
    assert not any(b"and-another-one" in file.read_bytes() for file in written)
    said = capfd.readouterr()
    assert token not in said.out + said.err
    assert said.out == ""


class Recorder(transformers.TrainerCallback):
    """Keeps what it is told, and reads what transformers' own callbacks read."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def _tell(self, event, arguments, state, control, model=None, logs=None, **_):
        assert isinstance(arguments, transformers.TrainingArguments)
        assert isinstance(control, transformers.TrainerControl)
        assert state.is_world_process_zero
        assert not state.is_hyper_param_search
        assert state.max_steps == arguments.max_steps == 4
        assert arguments.to_dict()["run_name"] == arguments.run_name
        assert arguments.parallel_mode.value in ("not_parallel", "not_distributed")
        assert model.num_parameters() > 0
        self.told.append((event, state.global_step, logs))

    def on_train_begin(self, *context, **more):
        self._tell("begin", *context, **more)

    def on_log(self, *context, **more):
        self._tell("log", *context, **more)

    def on_train_end(self, *context, **more):
        self._tell("end", *context, **more)


@pytest.mark.parametrize("fails", [False, True])
def test_callbacks_are_told_what_hf_trainer_tells_them_and_nothing_is_set_up(
    tmp_path, monkeypatch, fails
):
    AcceleratorState._reset_state(reset_partial_state=True)
    recorder = Recorder()
    monkeypatch.setattr(trackers, "tracker_callbacks", lambda names: [recorder] * bool(names))
    monkeypatch.setattr(checks, "check_trackers", lambda _: None)
    run = train(
        tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=4, eval_examples=0,
        report_to="mlflow", start=False,
    )  # fmt: skip
    if fails:
        run.store.log = lambda row: 1 / (3 - row["step"])
    run.start().wait(60)
    losses = [] if fails else run.result().losses
    seen = [logs for event, _, logs in recorder.told if event == "log" and "sigma_1" in logs]
    recorder.told = [one for one in recorder.told if one[2] not in seen]
    logged = [(step, logs["loss"]) for event, step, logs in recorder.told if event == "log"]
    assert logged[: len(losses)] == [*losses]
    assert [event for event, *_ in recorder.told] == ["begin", *["log"] * len(logged), "end"]
    assert len(logged) == (3 if fails else 4)
    assert AcceleratorState._shared_state == {}
    assert seen
    assert seen[0].keys() == {"sigma_1", "effective_rank", "peak_memory"}


def test_of_the_update_the_largest_value_and_the_mean_rank_are_told(monkeypatch, tmp_path):
    recorder = Recorder()
    monkeypatch.setattr(trackers, "tracker_callbacks", lambda _: [recorder])
    told = trackers.Trackers(TrainingConfig(max_steps=4), tmp_path, tiny_lm().model, CPU)
    values = {"a": np.array([3.0, 1.0]), "b": np.array([2.0, 2.0, 2.0]), "pruned": np.empty(0)}
    told.log_seen(2, Spectra(2, values), 4096)
    told.log_seen(3, None, 4096)
    told.log_seen(3, Spectra(3, {"pruned": np.empty(0)}), 4096)
    ((event, step, logs),) = recorder.told
    assert (event, step) == ("log", 2)
    # exp of the entropy of σ / Σσ (Roy & Vetterli, 2007): of (3, 1) 4 / 3^(3/4), of equal ones 3.
    ranks = (4 / 3**0.75 + 3) / 2
    assert logs == {"sigma_1": 3.0, "effective_rank": pytest.approx(ranks), "peak_memory": 4096}


def test_trackers_are_made_without_a_word_in_the_environment(monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Recorder)
    before = dict(os.environ)
    (made,) = trackers.tracker_callbacks(["wandb"])
    assert isinstance(made, Recorder)
    assert dict(os.environ) == before


def test_what_they_record_of_a_config_has_no_secret_wherever_it_stands(monkeypatch, tmp_path):
    recorder = Recorder()
    monkeypatch.setattr(trackers, "tracker_callbacks", lambda _: [recorder])
    monkeypatch.setenv("MY_PASSWORD", "pa55-word")
    model = tiny_lm().model
    told = trackers.Trackers(TrainingConfig(max_steps=4), tmp_path, model, CPU)
    assert told._model is model, "as it is, where there is none"
    model.config.id2label = {0: "pa55-word", 1: "b"}
    model.config.more = {"text": ["see pa55-word"]}
    shown = trackers.Trackers(TrainingConfig(max_steps=4), tmp_path, model, CPU)._model.config
    assert shown.to_dict()["id2label"] == {0: "[redacted]", 1: "b"}
    assert "pa55-word" not in shown.to_json_string()
    assert model.config.id2label[0] == "pa55-word"
