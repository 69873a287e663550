"""Adapters folded into the weights for good: a plain model, which is adapted anew."""

import copy

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.tiny_models import tiny, tiny_inputs


def with_update(model, adapter):
    """A copy of a bare model with W₀ + s·BA built in, in float64."""
    plain = copy.deepcopy(model)
    for path, site in adapter.sites.items():
        weight = plain.get_submodule(path).weight
        delta = site.scale * site.B.detach().double() @ site.A.detach().double()
        weight.data = (weight.data.double() + delta).to(weight.dtype)
    return plain


@pytest.mark.parametrize("leave", [ll.merge_and_unload, ll.detach])
def test_what_was_merged_for_good_is_a_plain_model_that_is_adapted_anew(leave):
    model = tiny("llama")
    batch = tiny_inputs(model)
    model.model.norm.weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    bare = copy.deepcopy(model)
    built = with_update(bare, ll.attach(model, everything()))
    ll.merge(model, keep_original=False)
    if leave is ll.detach:
        with pytest.warns(UserWarning, match="the weights stay W₀ \\+ ΔW"):
            leave(model)
    else:
        assert leave(model) is model
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not ll.attached(model)
    torch.testing.assert_close(outputs(model, batch), outputs(built, batch), rtol=1e-4, atol=1e-5)
    once = outputs(model, batch)
    second = ll.attach(model, everything(target_modules=["v"]), "second")
    torch.testing.assert_close(
        outputs(model, batch), outputs(with_update(built, second), batch), rtol=1e-4, atol=1e-5
    )
    ll.detach(model)
    assert torch.equal(outputs(model, batch), once)


def test_merging_and_unloading_in_a_loop_is_pefts():
    from peft import LoraConfig, get_peft_model

    theirs, ours = tiny("llama").double(), tiny("llama").double()
    ids = tiny_inputs(ours)["input_ids"]
    for _ in range(3):
        wrapped = get_peft_model(theirs, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
        adapter = ll.attach(ours, ll.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
        by_name = dict(wrapped.named_parameters())
        with torch.no_grad():
            for path, site in adapter.sites.items():
                by_name[f"base_model.model.{path}.lora_A.default.weight"].copy_(site.A)
        learned = [p for p in wrapped.parameters() if p.requires_grad]
        for model, parameters in ((wrapped, learned), (ours, list(adapter.parameters()))):
            model(input_ids=ids, labels=ids).loss.backward()
            torch.optim.SGD(parameters, lr=1.0).step()
        theirs, ours = wrapped.merge_and_unload(), ll.merge_and_unload(ours)
        for name, parameter in theirs.named_parameters():
            # Our factors are float64 as PEFT's are here: the sums round alike.
            torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=1e-6, atol=1e-8)
    path = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ours.get_parameter(path), tiny("llama").double().get_parameter(path))


def test_unloading_says_which_adapters_it_drops_and_refuses_before_anything_has_changed():
    model = tiny("llama")
    batch = tiny_inputs(model)
    ll.attach(model, everything(init_lora_weights=False), "a")
    want = outputs(model, batch)
    ll.attach(model, ll.BottleneckConfig("P", r=2), "b")
    with pytest.raises(AdapterError, match="cannot be merged"):
        ll.merge_and_unload(model)
    assert list(ll.attached(model)) == ["a", "b"]
    with pytest.warns(UserWarning, match="drops the other adapters too: 'b'; ll.save_adapter"):
        ll.merge_and_unload(model, "a")
    torch.testing.assert_close(outputs(model, batch), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="the model has no adapter"):
        ll.merge_and_unload(model)
    keys = tiny("llama").state_dict().keys()
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize("config", [ll.IA3Config(), ll.OFTConfig(oft_block_size=4)])
def test_what_is_merged_for_good_is_a_plain_parameter(config):
    model = tiny("llama")
    ll.attach(model, config)
    ll.merge_and_unload(model)
    assert all(parameter.is_leaf for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(False)
