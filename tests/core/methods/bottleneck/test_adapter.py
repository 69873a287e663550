"""Adapter layers beside other methods and through every call of the API; where they stand."""

import copy

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.attached import attached
from tests.helpers.adapter_layers import VARIANTS, hooked_by_hand, places_by_hand, stir, values_of
from tests.helpers.lora_outputs import outputs
from tests.helpers.quantized_layers import quantized
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import tiny_lm, tiny_task

# Beside others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
@pytest.mark.parametrize("variant", ["H", "L"])
@pytest.mark.parametrize("lora_first", [True, False])
def test_combined_with_lora_on_the_very_same_matrices(name, variant, lora_first):
    lora = ll.LoraConfig(r=2, lora_alpha=6, target_modules=["o", "down"], init_lora_weights=False)
    configs = [lora, ll.BottleneckConfig(variant, r=3)]
    model = tiny(name).double()
    batch = tiny_inputs(model)
    combined = ll.attach(model, configs if lora_first else configs[::-1])
    stir(combined)
    parts = {part.method: part for part in combined.adapters}
    base = tiny(name).double()
    for site in parts["LoRA"].sites.values():
        weight = base.get_submodule(site.site.module).weight
        delta = 3.0 * site.B.detach() @ site.A.detach()
        weight.data += delta.T if site.site.transposed else delta
    paths = [path for _, path in places_by_hand(name, model, variant)]
    values = values_of(parts[f"Adapter^{variant}"], paths)
    expected = outputs(hooked_by_hand(base, values), batch)
    torch.testing.assert_close(outputs(model, batch), expected, rtol=1e-9, atol=1e-9)
    learnt = set(map(id, combined.parameters()))
    assert {id(p) for p in model.parameters() if p.requires_grad} == learnt
    bare = outputs(tiny(name).double(), batch)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), bare)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_of_the_model_is_its_own(variant):
    model = tiny("llama")
    batch = tiny_inputs(model)
    bare = outputs(model, batch)
    stir(ll.attach(model, ll.BottleneckConfig(variant, r=3)))
    before = outputs(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin, batch), before)
    for parameter in attached(twin)["default"].parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(outputs(twin, batch), bare)
    assert torch.equal(outputs(model, batch), before)
    stir(attached(twin)["default"])
    ll.activate(twin, None)
    assert torch.equal(outputs(twin, batch), bare)
    ll.detach(twin)
    assert not [m for m in twin.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert torch.equal(outputs(model, batch), before)


def test_another_adapters_merge_leaves_it_as_it_was():
    model = tiny("llama")
    batch = tiny_inputs(model)
    stir(ll.attach(model, ll.BottleneckConfig("H", r=3), name="h"))
    before = outputs(model, batch)
    ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False, target_modules=["o"]), name="lora")
    with_lora = outputs(model, batch)
    ll.merge(model, "lora")
    torch.testing.assert_close(outputs(model, batch), with_lora)
    ll.activate(model, "lora")
    ll.unmerge(model)
    ll.activate(model, "h")
    assert torch.equal(outputs(model, batch), before)


def test_learned_activations_and_adapter_l_hang_on_the_same_blocks():
    model = tiny("llama")
    both = ll.attach(model, [ll.BottleneckConfig("L", r=3), ll.PrefixLayerConfig(2, 0)])
    learnt = set(map(id, both.parameters()))
    assert {id(p) for p in model.parameters() if p.requires_grad} == learnt


def test_it_stands_behind_packed_weights():
    model = quantized()
    batch = tiny_inputs(model)
    bare = outputs(model, batch)
    adapter = ll.attach(model, ll.BottleneckConfig("H", r=3))
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert torch.equal(outputs(model, batch), bare)
    model(**batch).logits.pow(2).sum().backward()
    assert all(learnt[0].grad.any() for learnt in adapter.parameters_by_location().values())


def test_two_adapter_layers_at_one_place_are_refused():
    model = tiny("llama")
    with pytest.raises(ConfigError, match="both claim the place after the MLP of layer 0"):
        ll.attach(model, [ll.BottleneckConfig("H"), ll.BottleneckConfig("P")])
    assert not attached(model)


@pytest.mark.parametrize("configs", [None, ll.LoraConfig(r=2, init_lora_weights=False)])
def test_merging_is_refused_and_nothing_changes(configs):
    model = tiny("llama")
    batch = tiny_inputs(model)
    own = ll.BottleneckConfig("P", r=3)
    stir(ll.attach(model, own if configs is None else [configs, own]))
    before = outputs(model, batch)
    with pytest.raises(AdapterError, match=r"Adapter\^P cannot be merged: no W₀ can hold the nonl"):
        ll.merge(model)
    assert torch.equal(outputs(model, batch), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded_it_answers_the_same(variant, tmp_path):
    model = tiny("t5")
    batch = tiny_inputs(model)
    adapter = ll.attach(model, ll.BottleneckConfig(variant, r=3))
    stir(adapter)
    before = outputs(model, batch)
    ll.save_adapter(model, tmp_path / "adapter")
    other = tiny("t5")
    loaded = ll.load_adapter(other, tmp_path / "adapter")
    assert loaded.config == adapter.config
    assert torch.equal(outputs(other, batch), before)
    with pytest.raises(AdapterError, match="load it onto the base it was made for"):
        ll.load_adapter(tiny("llama"), tmp_path / "adapter")


def test_generation_with_a_cache_is_generation_without():
    model = tiny("llama")
    stir(ll.attach(model, ll.BottleneckConfig("H", r=3)))
    batch = tiny_inputs(model, length=5)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**batch, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(**batch, use_cache=False, **settings))


@pytest.mark.parametrize(("variant", "checkpointing"), [("H", False), ("D", True)])
def test_a_run_trains_every_layer_and_leaves_the_base(variant, checkpointing, tmp_path):
    lm = tiny_lm()
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    run = ll.train(
        lm,
        tiny_task(),
        ll.BottleneckConfig(variant, r=8),
        output_dir=tmp_path,
        max_steps=15,
        learning_rate=1e-2,
        train_sampling_strategy="random",  # the longest first: its loss says less of learning
        eval_examples=0,
        gradient_checkpointing=checkpointing,
    )
    losses = [loss for _, loss in run.result(120).losses]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    (adapter,) = attached(lm.model).values()
    assert all(layer.up.any() and layer.up_bias.any() for layer in adapter.layers.values())
    ll.detach(lm.model)
    assert all(torch.equal(value, before[key]) for key, value in lm.model.state_dict().items())


# Where it stands ----------------------------------------------------------------------------------


def test_a_mixture_of_experts_gets_its_layer_behind_the_whole_mixture():
    import transformers

    config = transformers.MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        experts_implementation="eager",  # the default has no float64
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM._from_config(config).double().eval()
    paths = [f"model.layers.{n}.{leaf}" for n in (0, 1) for leaf in ("self_attn.o_proj", "mlp")]
    batch = tiny_inputs(model)
    adapter = ll.attach(model, ll.BottleneckConfig("H", r=3))
    stir(adapter)
    values = values_of(adapter, paths)
    found = outputs(model, batch)
    ll.detach(model)
    expected = outputs(hooked_by_hand(model, values), batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Odd(nn.Module):
    """A language model whose blocks have attention and nothing else."""

    def __init__(self):
        super().__init__()
        self.config = tiny("llama").config
        attention = tiny("llama").model.layers[0].self_attn
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": attention})])


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        (lambda: tiny("llama"), ll.BottleneckConfig(r=33), "r is 33 and the model is 32 wide; use"),
        (
            lambda: tiny("t5"),
            ll.BottleneckConfig("D", drop_layers=2),
            "drop_layers is 2 and the model has 2 blocks; use a drop_layers of at most 1",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
            ll.BottleneckConfig("P", r=2),
            "Adapter^P needs the width of the model's blocks, and its config does not tell; use L",
        ),
    ],
)
def test_what_cannot_be_is_refused_alike_by_attach_and_budget(make, config, message):
    model = make()
    keys = list(model.state_dict())
    for refused in (ll.attach, ll.budget):
        with pytest.raises(ConfigError) as caught:
            refused(model, config)
        assert message in str(caught.value)
    assert list(model.state_dict()) == keys
    assert not attached(model)


def test_a_block_without_an_mlp_is_named():
    message = r"Adapter\^P finds no output of the MLP of width 32 in layer 0; use LoRA"
    with pytest.raises(ConfigError, match=message):
        ll.attach(Odd(), ll.BottleneckConfig("P", r=2))
