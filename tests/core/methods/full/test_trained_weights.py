"""W₀ and the tuned values, back to the bit whatever is done; biases that are new."""

import copy

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tuned_weights import (
    FAMILIES,
    NEW,
    WITH_BIASES,
    file_of,
    loss_of,
    same,
    trained,
    weights_of,
)

LORA = ll.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)


# --- W₀ and the tuned values ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("config", [ll.FullConfig(), ll.FullConfig(top_layers=1), NEW])
def test_both_states_come_back_to_the_bit(name, config, dtype, tmp_path):
    model = tiny(name).to(dtype)
    batch = tiny_inputs(model)
    flags = [p.requires_grad for p in model.parameters()]
    base, logits = weights_of(model), outputs(model, batch)
    adapter = trained(model, config)
    tuned, answers = weights_of(model), outputs(model, batch)
    assert not torch.equal(answers, logits)
    assert all(value.dtype == dtype for value in adapter.state().values())

    ll.activate(model, None)
    assert same(weights_of(model), base)
    assert torch.equal(outputs(model, batch), logits)
    assert not any(p.requires_grad for p in model.parameters())
    ll.activate(model, "default")
    assert same(weights_of(model), tuned)
    assert [p.requires_grad for p in adapter.parameters()] == [True] * len(adapter.state())

    folder = ll.save_adapter(model, tmp_path / "on")
    ll.activate(model, None)
    ll.save_adapter(model, tmp_path / "off", "default")
    assert same(file_of(tmp_path / "off"), file_of(folder))
    ll.activate(model, "default")

    if config is not NEW or name in WITH_BIASES:
        ll.merge(model)
        assert same(weights_of(model), tuned)
        assert not any(p.requires_grad for p in model.parameters())
        ll.unmerge(model)
        assert same(weights_of(model), tuned)

    ll.detach(model)
    assert same(weights_of(model), base)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not hasattr(model, "_lora_lab")

    ll.load_adapter(model, folder)
    assert same(weights_of(model), tuned)
    assert torch.equal(outputs(model, batch), answers)
    ll.detach(model)
    assert same(weights_of(model), base)


def test_the_names_in_a_state_dict_stay():
    for name in FAMILIES:
        model = tiny(name)
        names = list(model.state_dict())
        adapter = ll.attach(model, ll.FullConfig())
        assert list(model.state_dict()) == names
        # A tied weight has one name there: the first.
        assert list(adapter.state()) == [n for n, _ in model.named_parameters()]


def test_a_buffer_that_training_changes_is_no_part_of_the_state_and_the_base_keeps_its_own():
    model = tiny("llama")
    model.register_buffer("counted", torch.zeros(1))
    adapter = ll.attach(model, ll.FullConfig())
    model.counted += 1
    ll.activate(model, None)
    assert model.counted.item() == 0
    ll.activate(model, "default")
    assert model.counted.item() == 1
    assert "counted" not in adapter.state()


def test_values_are_the_tuned_ones_on_and_off():
    model = tiny("gpt2")
    base = weights_of(model)
    adapter = trained(model, ll.FullConfig(top_layers=1))
    tuned = adapter.snapshot()
    ll.activate(model, None)
    assert all(torch.equal(a, b) for a, b in zip(adapter.snapshot(), tuned, strict=True))
    other = [value + 1 for value in tuned]
    adapter.restore(other)
    assert same(weights_of(model), base)
    ll.activate(model, "default")
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), other, strict=True))
    adapter.restore(tuned)
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), tuned, strict=True))
    ll.detach(model)
    assert same(weights_of(model), base)


def test_gradients_go_with_the_values_they_are_of():
    model = tiny("gpt2")
    batch = tiny_inputs(model)
    loss_of(model, batch).backward()
    of_the_base = {n: p.grad.clone() for n, p in model.named_parameters()}
    trained(model, ll.FullConfig(), "first")
    loss_of(model, batch).backward()
    of_the_first = {n: p.grad.clone() for n, p in model.named_parameters()}
    ll.attach(model, ll.FullConfig(), "second")  # is the base still
    assert all(p.grad is None for p in model.parameters())
    loss_of(model, batch).backward()
    assert same({n: p.grad for n, p in model.named_parameters()}, of_the_base)
    ll.activate(model, "first")
    assert same({n: p.grad for n, p in model.named_parameters()}, of_the_first)
    ll.detach(model)
    assert same({n: p.grad for n, p in model.named_parameters()}, of_the_base)


def test_a_switch_between_forward_and_backward_is_told():
    model = tiny("llama")
    ll.attach(model, ll.FullConfig())
    loss = loss_of(model, tiny_inputs(model))
    ll.activate(model, None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_copy_of_the_model_has_its_own_values():
    model = tiny("smollm")
    base = weights_of(model)
    trained(model, ll.FullConfig())
    tuned = weights_of(model)
    twin = copy.deepcopy(model)
    ll.detach(twin)
    assert same(weights_of(twin), base)
    assert same(weights_of(model), tuned)


# --- new biases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5", "phi3", "falcon-grouped", "modernbert"])
def test_new_biases_are_zeros_that_learn_as_any_and_go_without_a_trace(name):
    model = tiny(name)
    batch = tiny_inputs(model, batch=2)
    bare, names = outputs(model, batch), list(model.state_dict())
    adapter = ll.attach(model, NEW)
    torch.testing.assert_close(outputs(model, batch), bare)
    fresh = tiny(name)
    paths = [site.module for site in ll.anatomy(fresh).grid_sites]
    without = [path for path in paths if fresh.get_submodule(path).bias is None]
    new = {f"{path}.bias" for path in without}
    assert new <= adapter.state().keys()
    assert model.state_dict().keys() - set(names) == new

    with torch.no_grad():
        for number, value in enumerate(adapter.state().values()):
            value.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    plain = tiny(name)
    for key, value in adapter.state().items():
        plain.get_submodule(key.rpartition(".")[0]).bias = nn.Parameter(value.detach().clone())
    loss_of(model, batch).backward()
    loss_of(plain, batch).backward()
    expected = dict(plain.named_parameters())
    for key, value in adapter.state().items():
        torch.testing.assert_close(value.grad, expected[key].grad, rtol=1e-4, atol=1e-5)

    ll.activate(model, None)
    assert list(model.state_dict()) == names
    assert torch.equal(outputs(model, batch), bare)
    ll.activate(model, "default")
    ll.detach(model)
    assert list(model.state_dict()) == names
    assert all(model.get_submodule(path).bias is None for path in without)


def test_new_biases_follow_the_model_to_another_dtype_while_they_are_off():
    model = tiny("llama")
    adapter = ll.attach(model, NEW)
    ll.activate(model, None)
    model.to(torch.bfloat16)
    ll.activate(model, "default")
    assert {p.dtype for p in adapter.parameters()} == {torch.bfloat16}
    loss_of(model, tiny_inputs(model)).backward()


@pytest.mark.parametrize("config", [NEW, [LORA, NEW]])
def test_new_biases_cannot_be_merged_and_the_model_is_as_it_was(config):
    model = tiny("llama")
    ll.attach(model, config)
    before = weights_of(model)
    with pytest.raises(AdapterError, match=r"q_proj.bias is new, and .* has no place for it"):
        ll.merge(model)
    assert same(weights_of(model), before)
    assert ll.active(model) == "default"
