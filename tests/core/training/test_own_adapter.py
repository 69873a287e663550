"""A run's adapter is known by its run, whatever the model has under its name."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError, RunError
from lora_lab.training.own_adapter import on_model
from tests.helpers.tiny_run import logits, tiny_lm, tiny_task, until

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = ll.LoraConfig(r=2, lora_alpha=32, target_modules=["q", "v"])
WIDE = ll.LoraConfig(r=8, lora_alpha=32, target_modules=["q", "v"])


@pytest.fixture
def two(begin):
    """Two runs on one model, the second after the first; and the first one's answers."""
    lm = tiny_lm()
    first = begin(lm, WIDE)
    first.result(60)
    answers = logits(lm.model)
    with pytest.warns(UserWarning, match="it is replaced"):
        second = begin(lm, NARROW)
    second.result(60)
    return first, second, answers


def rank_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())["r"]


def test_each_of_two_runs_on_one_model_keeps_its_own(two, tmp_path):
    first, second, answers = two
    assert (first.is_attached, second.is_attached) == (False, True)
    assert rank_in(first.result().adapter_folder) == 8
    assert rank_in(first.save(tmp_path / "first")) == 8
    assert rank_in(second.save(tmp_path / "second")) == 2
    fresh = tiny_lm().model
    ll.load_adapter(fresh, tmp_path / "first")
    assert torch.equal(logits(fresh), answers)
    before = logits(second.model)
    with on_model(first) as name:
        ll.activate(first.model, name)
        assert torch.equal(logits(first.model), answers)
        ll.activate(first.model, "default")
    assert ll.attached(first.model) == {"default": second.adapter}
    assert torch.equal(logits(second.model), before)


def test_a_trained_model_can_be_copied(begin):
    lm = tiny_lm()
    begin(lm, NARROW).result(60)
    twin = copy.deepcopy(lm.model)
    assert torch.equal(logits(twin), logits(lm.model))
    assert not ll.attached(twin)["default"].trains()


def test_a_card_is_not_written_with_another_runs_numbers(two, tmp_path):
    first, second, _ = two
    said = f"is of run {second.id}, and not of {first.id}; name that run, or load this one's"
    with pytest.raises(AdapterError, match=said):
        ll.push_ready(first.model, tmp_path / "hub", run=first)
    assert not (tmp_path / "hub").exists()
    assert ll.push_ready(second.model, tmp_path / "hub", run=second.folder).is_dir()


@pytest.mark.parametrize(
    "config", [ll.BitFitConfig(new_biases=True), [NARROW, ll.PrefixEmbedConfig(3, 2)]]
)
def test_files_of_every_form_are_copied_whole(begin, tmp_path, config):
    lm = tiny_lm()
    run = begin(lm, config, max_steps=2, max_length=32)
    run.result(60)
    answers = logits(lm.model)
    ll.detach(lm.model)
    fresh = tiny_lm().model
    ll.attach(fresh, WIDE)
    ll.save_adapter(fresh, tmp_path / "saved")  # another form was there before
    ll.detach(fresh)
    ll.load_adapter(fresh, run.save(tmp_path / "saved"))
    assert torch.equal(logits(fresh), answers)
    assert run.save(run.folder / "adapter") == run.folder / "adapter", "onto itself"


def test_a_run_saves_while_it_trains(begin, tmp_path):
    run = begin(max_steps=100_000)
    until(lambda: run.snapshot.step >= 2)
    folder = run.save(tmp_path / "saved")
    run.stop()
    run.wait(60)
    assert rank_in(folder) == 4


def test_what_has_no_adapter_says_so(begin, tmp_path):
    idle = ll.train(tiny_lm(), tiny_task(), WIDE, output_dir=tmp_path, start=False)
    with pytest.raises(RunError, match="is idle and has left no adapter; train it first"):
        idle.save(tmp_path / "saved")
    assert not idle.is_attached


def test_nobody_takes_away_what_a_run_trains(begin, tmp_path):
    run = begin(max_steps=100_000)
    model = run.model
    until(lambda: run.snapshot.step >= 2)
    folder = run.save(tmp_path / "saved")
    said = f"run {run.id} trains adapter 'default' of this model now; do it within"
    for act in (
        lambda: ll.attach(model, NARROW),
        lambda: ll.attach(model, NARROW, "other"),
        lambda: ll.load_adapter(model, folder),
        lambda: ll.load_adapter(model, folder, "other"),
        lambda: ll.detach(model),
        lambda: ll.detach(model, "default"),
        lambda: ll.activate(model, None),
        lambda: ll.merge(model),
        lambda: ll.merge_and_unload(model),
    ):
        with pytest.raises(AdapterError, match=said):
            act()
    assert ll.attached(model) == {"default": run.adapter}
    ll.activate(model, "default")  # as it is
    ll.load_adapter(model, folder, "beside", activate=False)
    with run.paused():
        ll.merge(model)
        ll.unmerge(model)
        ll.activate(model, "beside")
        ll.activate(model, None)
    step = run.snapshot.step
    until(lambda: run.snapshot.step > step)
    run.stop()
    run.result(60)
    assert run.is_attached
