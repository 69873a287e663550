"""Copies that the computer's memory does not hold are refused before they are made."""

import copy

import pytest
import torch

import lora_lab as ll
from lora_lab._util import host_memory
from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import BitFitConfig, FullConfig
from lora_lab.errors import AdapterError, LoraLabError
from tests.helpers.lora_outputs import stirred
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import CONFIG, tiny_lm, tiny_task

BIASED = CONFIG.replace(bias="all")


def size_of(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.fixture
def free(monkeypatch):
    """Sets the bytes that are free, as Linux tells them."""

    def set_to(size):
        monkeypatch.setattr(host_memory, "available_memory", lambda: size)

    return set_to


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [FullConfig(), FullConfig(top_layers=1), BitFitConfig(), BIASED])
def test_a_second_set_of_values(free, dtype, config):
    model = tiny("gpt2").to(dtype)
    ll.attach(model, config)
    own = (p for name, p in model.named_parameters() if p.requires_grad and "lora" not in name)
    needed = size_of(own)
    ll.detach(model)
    before = copy.deepcopy(model.state_dict())
    free(needed - 1)
    with pytest.raises(AdapterError, match=r"takes .* computer's memory, and .* available; train"):
        ll.attach(model, config)
    assert not ll.attached(model)
    assert all(torch.equal(before[name], own) for name, own in model.state_dict().items())
    free(needed)
    ll.attach(model, config)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("config", [CONFIG, CONFIG.replace(use_dora=True), FullConfig()])
def test_a_merge_that_keeps_the_weights_it_writes(free, config, share):
    model = tiny("llama").eval()
    adapter = ll.attach(model, config)
    if adapter.sites:
        stirred(adapter)
    batch = tiny_inputs(model)
    expected = model(**batch).logits
    written = {id(w): w for w, _ in adapter.merged_weights()}
    free(int(share * size_of(written.values())))
    with pytest.raises(AdapterError, match=r"keep_original=False\) keeps nothing"):
        ll.merge(model)
    assert ll.active(model) == "default"
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=0)
    free(size_of(written.values()))
    ll.merge(model)
    ll.unmerge(model)
    free(0)
    ll.merge(model, keep_original=False)


def test_a_run_says_so_before_its_first_step(free, tmp_path):
    lm = tiny_lm()
    before = copy.deepcopy(lm.model.state_dict())
    free(size_of(lm.model.parameters()) + 1)  # for the second set of values, but not for two more
    run = ll.train(lm, tiny_task(), FullConfig(), output_dir=tmp_path, max_steps=2)
    with pytest.raises(LoraLabError, match="the last good copy of what a run learns"):
        run.result()
    assert run.snapshot.step == 0
    assert ll.active(lm.model) in (None, run.adapter.name)
    assert all(torch.equal(before[name], own) for name, own in lm.model.state_dict().items())


def test_lora_needs_no_more_than_its_factors(free, tmp_path):
    lm = tiny_lm()
    free(size_of(lm.model.parameters()) // 2)
    run = ll.train(lm, tiny_task(), CONFIG, output_dir=tmp_path, max_steps=2, eval_examples=0)
    run.result()
    assert run.snapshot.step == 2


@pytest.mark.parametrize("config", [FullConfig(), BIASED])
def test_a_dry_run_takes_none(free, config):
    model = tiny("llama")
    free(0)
    report = dry_run(model, config, batch_size=1, sequence_length=8)
    assert report.device_peak > report.weights
