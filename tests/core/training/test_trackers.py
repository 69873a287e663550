"""Trackers that are really there, offline: what they write, and what they do not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_lab.training.api import train
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task


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
    run = train(
        tiny_lm(), tiny_task(), CONFIG, output_dir=tmp_path, max_steps=6, eval_examples=0,
        report_to="tensorboard",
    )  # fmt: skip
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
    assert not any(token.encode() in file.read_bytes() for file in written)
    said = capfd.readouterr()
    assert token not in said.out + said.err
    assert said.out == ""
