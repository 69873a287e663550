"""Two workbenches on one model: each knows its adapter by its run."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError, RunError
from lora_lab.training.snapshot import RunState
from lora_lab_widgets import Workbench
from tests.helpers.tiny_chat import tiny_chat_model

QUICK = {"max_steps": 3, "per_device_train_batch_size": 2, "max_length": 96, "eval_examples": 0}


def bench(model, tmp_path, r, **settings):
    config = ll.LoraConfig(r=r, lora_alpha=32, target_modules=["q", "v"])
    return Workbench(*model, config=config, output_dir=tmp_path, **{**QUICK, **settings})


def rank_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())["r"]


@pytest.fixture
def two(tmp_path):
    """The first has trained, then the second."""
    model = tiny_chat_model()
    first, second = (bench(model, tmp_path, r, learning_rate=0.05) for r in (8, 2))
    first.start().result(60)
    first.alone = first.session.answer("name[The Blue Fig]", 4)
    second.start().result(60)
    return first, second


def test_each_saves_its_own_adapter(two, tmp_path):
    first, second = two
    assert not first.run.is_attached
    assert second.run.is_attached
    for wb, r in ((first, 8), (second, 2)):
        folder = wb.save(tmp_path / f"r{r}")
        assert rank_in(folder) == r
        loaded = ll.load_adapter(tiny_chat_model()[0], folder)
        state = wb.run.adapter.state()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state().items())
    assert rank_in(second.save(tmp_path / "r8")) == 2, "what lay there is replaced"


def test_each_answers_with_its_own_adapter_and_leaves_the_model_as_it_was(two):
    first, second = two
    assert first.session.answer("name[The Blue Fig]", 4) == first.alone
    assert second.session.answer("name[The Blue Fig]", 4)[0] == first.alone[0]
    assert ll.attached(first.lm.model) == {"default": second.run.adapter}
    assert ll.active(first.lm.model) == "default"


def test_each_looks_at_its_own_delta_w(two):
    first, second = two
    for wb, r in ((first, 8), (second, 2)):
        step, (update, *_) = wb.session.live_adapter.copy()
        assert (step, update.update.r) == (3, r)
        site = wb.run.adapter.sites[update.site.name]
        np.testing.assert_array_equal(np.asarray(update.update.A), site.A.detach().numpy())
        assert set(wb.delta_w.ranks.values()) == {r}


def test_a_bench_beside_one_that_trains_has_it_rest(tmp_path):
    model = tiny_chat_model()
    first, second = bench(model, tmp_path, 8), bench(model, tmp_path, 2, max_steps=100_000)
    first.start().result(60)
    run = second.start()
    while run.snapshot.step < 2:
        time.sleep(0.001)
    with first.session.live_adapter.at_rest():
        assert run.state is RunState.PAUSED
    base, adapted = first.session.answer("name[The Blue Fig]", 2)
    assert isinstance(base, str)
    assert isinstance(adapted, str)
    run.stop()
    assert run.wait(60)
    assert run.state is RunState.DONE, run.snapshot.failure


def test_a_bench_that_has_not_trained_saves_no_other_runs_adapter(two, tmp_path):
    first, _ = two
    third = bench((first.lm.model, first.lm.tokenizer), tmp_path, 4)
    with pytest.raises(AdapterError, match="which this workbench has not started; save it by its"):
        third.save(tmp_path / "third")
    assert not (tmp_path / "third").exists()
    ll.detach(first.lm.model)
    with pytest.raises(AdapterError, match="the model has no adapter; call attach"):
        third.save(tmp_path / "third")
    ll.attach(first.lm.model, ll.LoraConfig(r=5, target_modules=["o"]))
    assert rank_in(third.save(tmp_path / "third")) == 5, "one's own is shown, and saved"


def test_an_adapter_of_ones_own_is_not_taken_for_the_runs(two, tmp_path):
    _, second = two
    with pytest.warns(UserWarning, match="it is replaced"):
        ll.attach(second.lm.model, ll.LoraConfig(r=5, target_modules=["o"]))
    assert rank_in(second.save(tmp_path / "saved")) == 2
    assert set(second.delta_w.ranks.values()) == {2}
    ll.detach(second.lm.model)
    assert rank_in(second.save(tmp_path / "again")) == 2


def test_what_left_no_adapter_says_so(tmp_path):
    model = tiny_chat_model()
    wb = bench(model, tmp_path, 8, max_steps=100_000)
    wb.start().pause()
    wb.run.stop()
    wb.run.wait(60)
    ll.detach(wb.lm.model)
    if wb.run.snapshot.step == 0:
        with pytest.raises(RunError, match="has left no adapter, and the model has it no more"):
            wb.save(tmp_path / "saved")


def test_once_merged_for_good_there_is_no_base_to_compare_with(two):
    first, _ = two
    ll.merge_and_unload(first.lm.model)
    site = next(iter(first.run.adapter.sites))
    with pytest.raises(AdapterError, match="W₀ is gone; load the model again"):
        first.session.live_adapter.base_weight(site)
