"""FT, FT-TopN and BitFit: a plain model's gradients, beside other adapters, and refusals."""

import copy

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tuned_weights import (
    FAMILIES,
    NEW,
    WITH_BIASES,
    loss_of,
    same,
    trained,
    weights_of,
)

LAST_STACK = {
    "gpt2": lambda model: model.transformer.h,
    "smollm": lambda model: model.model.layers,
    "llama": lambda model: model.model.layers,
    "bert": lambda model: model.bert.encoder.layer,
    "t5": lambda model: model.decoder.block,
}
LORA = ll.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)


# --- what is trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("top", [None, 1, 2])
def test_gradients_are_a_plain_models(name, top):
    plain = tiny(name)
    batch = tiny_inputs(plain, batch=2)
    if top is not None:
        plain.requires_grad_(False)
        for block in list(LAST_STACK[name](plain))[-top:]:
            block.requires_grad_(True)
    loss_of(plain, batch).backward()
    expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    model = tiny(name)
    ll.attach(model, ll.FullConfig(top_layers=top))
    loss_of(model, batch).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert same(found, expected)


@pytest.mark.parametrize("name", WITH_BIASES)
def test_bitfits_gradients_are_autograds_for_the_biases_of_the_backbone(name):
    plain = tiny(name)
    batch = tiny_inputs(plain, batch=2)
    loss_of(plain, batch).backward()
    backbone = f"{plain.base_model_prefix}."
    expected = {
        n: p.grad
        for n, p in plain.named_parameters()
        if n.startswith(backbone) and n.endswith("bias")
    }
    model = tiny(name)
    adapter = ll.attach(model, ll.BitFitConfig())
    loss_of(model, batch).backward()
    assert same({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected)
    assert list(adapter.state()) == list(expected)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("config", [ll.FullConfig(), ll.FullConfig(top_layers=1), NEW])
def test_the_count_is_the_budgets(name, config):
    model = tiny(name)
    expected = ll.budget(model, config).parameters_trainable
    adapter = ll.attach(model, config)
    assert adapter.trainable == expected
    assert expected == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter.method == config.method


def test_the_counts_are_the_papers():
    d, layers, words, positions = 32, 2, 96, 64
    block = 12 * d**2 + 13 * d
    everything = layers * block + words * d + positions * d + 2 * d
    for config, count in [
        (ll.FullConfig(), everything),
        (ll.FullConfig(top_layers=2), 2 * block),
        (ll.BitFitConfig(), 11 * layers * d + d),
    ]:
        assert ll.attach(tiny("gpt2"), config).trainable == count


def test_every_place_gets_a_gradient_and_a_key_never_speaks_for_its_block():
    for name, config in [
        *((name, ll.FullConfig()) for name in FAMILIES),
        *((name, ll.FullConfig(top_layers=2)) for name in FAMILIES),
        *((name, ll.BitFitConfig()) for name in WITH_BIASES),
        *((name, NEW) for name in FAMILIES),
    ]:
        model = tiny(name)
        adapter = ll.attach(model, config)
        loss_of(model, tiny_inputs(model, batch=2)).backward()
        names = {id(p): n for n, p in model.named_parameters()}
        for place, learnt in adapter.parameters_by_location().items():
            assert learnt[0].grad.any(), (name, place)
            assert "k_proj" not in names[id(learnt[0])]
    assert list(ll.attach(tiny("t5"), ll.FullConfig(top_layers=2)).parameters_by_location()) == [
        "block dec 1",
        "block dec 2",
    ]
    both = ll.attach(tiny("gpt2"), ll.BitFitConfig()).parameters_by_location()
    assert list(both) == ["block 0", "block 1", "outside the blocks"]
    assert [len(learnt) for learnt in both.values()] == [6, 6, 1]


# --- beside other adapters -----------------------------------------------------------------------


def test_a_lora_that_is_made_while_all_is_tuned_starts_from_w0():
    pissa = ll.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights="pissa")
    alone = tiny("gpt2")
    expected = ll.attach(alone, pissa)
    model = tiny("gpt2")
    batch = tiny_inputs(model)
    bare = outputs(model, batch)
    adapter = trained(model, ll.FullConfig(), "full")
    answers = outputs(model, batch)
    W0 = {n: expected.base_weight(n) for n in expected.sites}
    found = ll.attach(model, pissa, "lora", activate=False)
    assert torch.equal(outputs(model, batch), answers)  # the tuned values are back in place
    assert adapter.base_value(model.transformer.wte.weight) is not None
    for name, site in found.sites.items():
        assert torch.equal(found.base_weight(name), W0[name])
        assert torch.equal(site.A, expected.sites[name].A)
        assert torch.equal(site.B, expected.sites[name].B)
    ll.activate(model, "lora")
    assert torch.equal(outputs(model, batch), outputs(alone, batch))
    assert adapter.base_value(model.transformer.wte.weight) is None
    ll.activate(model, "full")
    assert torch.equal(outputs(model, batch), answers)
    ll.merge(model, "lora")
    ll.merge(model, "full")
    assert torch.equal(outputs(model, batch), answers)
    ll.detach(model, "full")
    ll.detach(model, "lora")
    assert torch.equal(outputs(model, batch), bare)


def test_an_adapter_of_the_same_name_is_replaced_by_one_that_starts_from_w0():
    model = tiny("gpt2")
    base = weights_of(model)
    trained(model, ll.FullConfig())
    with pytest.warns(UserWarning, match="it is replaced"):
        ll.attach(model, ll.FullConfig(top_layers=1))
    assert same(weights_of(model), base)


@pytest.mark.parametrize(
    ("configs", "claim"),
    [
        ([ll.FullConfig(), LORA], "FT and LoRA both claim"),
        ([ll.FullConfig(top_layers=1), LORA], "FT-Top1 and LoRA both claim"),
        (
            [ll.LoraConfig(r=2, target_modules=["wte"]), ll.FullConfig()],
            "both claim transformer.wte",
        ),
        ([ll.BitFitConfig(), ll.FullConfig()], "BitFit and FT both claim"),
        ([NEW, ll.BitFitConfig()], "BitFit and BitFit both claim"),
    ],
)
def test_two_that_train_the_same_weight_are_refused(configs, claim):
    model = tiny("gpt2")
    before = weights_of(model)
    with pytest.raises(ConfigError, match=claim):
        ll.attach(model, configs)
    assert same(weights_of(model), before)
    assert not hasattr(model, "_lora_lab")


@pytest.mark.parametrize("name", ["gpt2", "smollm", "bert"])
def test_lora_and_biases_learn_together_as_the_same_model_built_by_hand(name):
    model = tiny(name).double()
    batch = tiny_inputs(model, batch=2)
    plain = copy.deepcopy(model)
    adapter = ll.attach(model, [LORA, NEW])
    with torch.no_grad():
        for name_, value in adapter.adapters[1].state().items():
            value.normal_(generator=torch.Generator().manual_seed(len(name_)))
    biases = {n: v.detach().clone() for n, v in adapter.adapters[1].state().items()}
    for name_, value in biases.items():
        plain.get_submodule(name_.rpartition(".")[0]).bias = nn.Parameter(value)
    ll.attach(plain, LORA)
    plain.requires_grad_(True)
    for mine, theirs in zip(
        adapter.adapters[0].parameters(), ll.attached(plain)["default"].parameters(), strict=True
    ):
        mine.data.copy_(theirs.data)
    torch.testing.assert_close(outputs(model, batch), outputs(plain, batch))
    loss_of(model, batch).backward()
    loss_of(plain, batch).backward()
    expected = dict(plain.named_parameters())
    for name_, value in adapter.adapters[1].state().items():
        torch.testing.assert_close(value.grad, expected[name_].grad)
    ll.detach(model)


# --- what cannot be ------------------------------------------------------------------------------


def test_bad_configs_are_refused_with_the_budgets_words():
    model = tiny("llama")
    before = weights_of(model)
    for config in [ll.BitFitConfig(), ll.FullConfig(top_layers=3)]:
        with pytest.raises(ConfigError) as forecast:
            ll.budget(model, config)
        with pytest.raises(ConfigError) as caught:
            ll.attach(model, config)
        assert str(caught.value) == str(forecast.value)
        assert "\n" not in str(caught.value)
    assert same(weights_of(model), before)
    assert not hasattr(model, "_lora_lab")


class Linear8bitLt(nn.Linear):
    """What bitsandbytes' is called."""


def test_weights_that_no_step_can_change_are_refused_by_name():
    model = tiny("llama")
    layer = model.model.layers[1].mlp.down_proj
    layer.__class__ = Linear8bitLt
    for config in [ll.FullConfig(), ll.FullConfig(top_layers=1), NEW]:
        with pytest.raises(AdapterError, match=r"layers.1.mlp.down_proj.* holds 8-bit, not float"):
            ll.attach(model, config)
    layer.__class__ = nn.Linear
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    for config in [ll.FullConfig(), ll.FullConfig(top_layers=1), NEW]:
        with pytest.raises(AdapterError, match=r"down_proj.* holds torch.int8, not float"):
            ll.attach(model, config)
    assert not hasattr(model, "_lora_lab")
    other = tiny("qwen2")  # its biases are floating-point beside packed weights
    other.model.layers[0].self_attn.q_proj.__class__ = Linear8bitLt
    ll.attach(other, ll.BitFitConfig())


# --- in a run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [ll.FullConfig(), ll.FullConfig(top_layers=1), NEW])
def test_a_run_trains_it_and_leaves_the_base_as_it_was(config, tmp_path):
    lm = tiny_lm()
    base = weights_of(lm.model)
    run = ll.train(
        lm,
        tiny_task(),
        config,
        output_dir=tmp_path,
        max_steps=8,
        learning_rate=1e-2,
        train_sampling_strategy="random",
    )
    run.result()
    losses = [loss for _, loss in run.snapshot.losses]
    assert losses[-1] < losses[0]
    ll.activate(lm.model, None)
    assert same(weights_of(lm.model), base)
    ll.detach(lm.model)
    assert same(weights_of(lm.model), base)
