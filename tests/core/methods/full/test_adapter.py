"""FT, FT-TopN and BitFit: a plain model's gradients, and W₀ back to the bit whatever is done."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.full.adapter import FullAdapter
from tests.core.methods.test_api import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs
from tests.helpers.tiny_run import tiny_lm, tiny_task

# A decoder with and one without tied embeddings, an encoder, an encoder-decoder.
FAMILIES = ["gpt2", "smollm", "llama", "bert", "t5"]
LAST_STACK = {
    "gpt2": lambda model: model.transformer.h,
    "smollm": lambda model: model.model.layers,
    "llama": lambda model: model.model.layers,
    "bert": lambda model: model.bert.encoder.layer,
    "t5": lambda model: model.decoder.block,
}
WITH_BIASES = ["gpt2", "bert", "opt", "qwen2"]
LORA = ll.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)
NEW = ll.BitFitConfig(new_biases=True)


def loss_of(model: nn.Module, batch: dict) -> torch.Tensor:
    """A sum of squares of all outputs: every weight shows in it."""
    return model(**batch).logits.square().sum()


def trained(model: nn.Module, config, name: str = "default", seed: int = 1) -> FullAdapter:
    """Attach, and move every tuned value, as an optimizer does, in place."""
    adapter = ll.attach(model, config, name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapter


def weights_of(model: nn.Module) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], expected[key]) for key in expected
    )


def file_of(folder: Path) -> dict:
    return load_file(folder / "lora_lab_adapter.safetensors")


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


def test_buffers_stay_with_the_model():
    model = tiny("llama")
    model.register_buffer("counted", torch.zeros(1))
    adapter = ll.attach(model, ll.FullConfig())
    model.counted += 1
    ll.activate(model, None)
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
    run = ll.train(lm, tiny_task(), config, output_dir=tmp_path, max_steps=8, learning_rate=1e-2)
    run.result()
    losses = [loss for _, loss in run.snapshot.losses]
    assert losses[-1] < losses[0]
    ll.activate(lm.model, None)
    assert same(weights_of(lm.model), base)
    ll.detach(lm.model)
    assert same(weights_of(lm.model), base)
