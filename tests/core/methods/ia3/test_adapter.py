"""IA3 against PEFT: what it computes, its gradients, its files both ways."""

import copy
import json

import numpy as np
import peft
import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.peft_files import peft_model, settings_of, tensors_of
from tests.helpers.quantized_layers import quantized
from tests.helpers.tiny_classes import tiny_classifier
from tests.helpers.tiny_models import tiny

IDS = torch.arange(12).view(2, 6) + 3
# Separate and fused matrices, interleaved and grouped ones, Conv1D; with biases and without.
KINDS = ("llama", "gpt2", "gpt-neox", "phi3", "falcon-grouped", "bloom")
RANDOM = ll.IA3Config(init_ia3_weights=False)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_it_and_it_reads_peft(kind, tmp_path):
    model = tiny(kind)
    base = copy.deepcopy(model)
    torch.manual_seed(0)
    adapter = ll.attach(model, RANDOM)
    tuned = logits(model)
    assert (tuned - logits(base)).abs().max() > 0.1
    ll.save_adapter(model, tmp_path / "ours")
    theirs = peft_model(copy.deepcopy(base), tmp_path / "ours")
    torch.testing.assert_close(logits(theirs.eval()), tuned, rtol=1e-5, atol=1e-5)

    theirs.save_pretrained(tmp_path / "theirs")
    other = copy.deepcopy(base)
    ll.load_adapter(other, tmp_path / "theirs")
    assert torch.equal(logits(other), tuned)
    other = copy.deepcopy(base)
    assert ll.load_adapter(other, tmp_path / "ours").config == adapter.config
    assert torch.equal(logits(other), tuned)

    ll.merge(model)
    merged = theirs.merge_and_unload().state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, merged[name], rtol=1e-6, atol=1e-7)
    ll.unmerge(model)
    assert torch.equal(logits(model), tuned)


def test_it_learns_as_peft_does():
    """As many numbers, and the same gradients; an MLP's input is scaled, keys are outputs."""
    ours, theirs = tiny("qwen2"), tiny("qwen2")
    theirs.load_state_dict(ours.state_dict())
    adapter = ll.attach(ours, ll.IA3Config())
    config = peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    wrapped = peft.get_peft_model(theirs, config)
    for model in (ours, wrapped):
        model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = {
        name.removeprefix("base_model.model.").removesuffix(".ia3_l.default"): p.grad.flatten()
        for name, p in wrapped.named_parameters()
        if p.requires_grad
    }
    learned = adapter.parameters_by_location()
    assert learned.keys() == gradients.keys()
    for name, (parameter,) in learned.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-8)
        assert parameter.grad.abs().max() > 0, name


def test_slices_of_a_fused_matrix_come_back_as_they_were(tmp_path):
    model = tiny("gpt2")
    base = copy.deepcopy(model)
    adapter = ll.attach(model, ll.IA3Config(["v"], init_ia3_weights=False))
    assert adapter.trainable == 2 * 32
    ll.save_adapter(model, tmp_path)
    vector = tensors_of(tmp_path)["base_model.model.transformer.h.1.attn.c_attn.ia3_l"]
    own = adapter.parameters_by_location()["transformer.h.1.attn.c_attn[v]"][0]
    expected = torch.cat([torch.ones(64), own])[:, None]
    assert torch.equal(vector, expected)
    loaded = ll.load_adapter(base, tmp_path)
    assert loaded.config == adapter.config
    assert torch.equal(logits(base), logits(model))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_scaled_by_channels_as_in_peft(groups, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups), nn.Flatten(), nn.Linear(24, 3))
    base, x = copy.deepcopy(model), torch.randn(2, 4, 4, 4)
    ll.attach(model, ll.IA3Config(["0", "2"], init_ia3_weights=False))
    tuned = model(x)
    ll.save_adapter(model, tmp_path)
    assert tensors_of(tmp_path)["base_model.model.0.ia3_l"].shape == (1, 6, 1, 1)
    torch.testing.assert_close(peft_model(copy.deepcopy(base), tmp_path)(x), tuned)
    ll.merge(model)
    torch.testing.assert_close(model(x), tuned, rtol=1e-5, atol=1e-6)
    ll.load_adapter(base, tmp_path)
    torch.testing.assert_close(base(x), tuned)


def test_modules_to_save_go_with_it_both_ways(tmp_path):
    model = tiny("llama")
    base = copy.deepcopy(model)
    config = ll.IA3Config(["k"], modules_to_save=["lm_head"], init_ia3_weights=False)
    adapter = ll.attach(model, config)
    with torch.no_grad():
        for own in adapter.saved.parameters():
            own.add_(0.1)
    ll.save_adapter(model, tmp_path)
    theirs = peft_model(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-5)
    loaded = ll.load_adapter(base, tmp_path)
    assert loaded.config.modules_to_save == ("lm_head",)
    assert torch.equal(logits(base), logits(model))


def test_in_bfloat16_the_product_is_rounded_once_as_in_peft(tmp_path):
    model = tiny("llama").bfloat16()
    base = copy.deepcopy(model)
    adapter = ll.attach(model, RANDOM)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    ll.save_adapter(model, tmp_path)
    assert torch.equal(logits(peft_model(base, tmp_path)), logits(model))
    x = torch.randn(3, 32, dtype=torch.bfloat16)
    layer = model.model.layers[0].self_attn.k_proj
    (scale,) = adapter.parameters_by_location()["model.layers.0.self_attn.k_proj"]
    plain = (x @ layer.weight.T).double() * scale.double()
    np.testing.assert_allclose(layer(x).double().detach(), plain.detach(), rtol=2**-8)


def test_samples_of_one_batch_have_vectors_of_their_own():
    model = tiny("llama")
    alone = {}
    for name in ("first", "second"):
        ll.attach(model, RANDOM, name)
        alone[name] = logits(model)
    ll.attach(model, ll.LoraConfig(r=2, init_lora_weights=False), "lora")
    alone["lora"] = logits(model)
    for names in (["second", "first"], ["lora", "second"]):
        with ll.mixed_batch(model, names):
            mixed = logits(model)
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row], alone[name][row], rtol=1e-4, atol=1e-5)


def test_over_a_quantized_base_it_acts_and_merges_on_demand():
    model = quantized("qwen2")
    before = logits(model)
    ll.attach(model, RANDOM)
    tuned = logits(model)
    assert not torch.allclose(tuned, before, atol=1e-2)
    with pytest.raises(AdapterError, match="holds quantized weights"):
        ll.merge(model)
    ll.merge(model, dequantize=True)
    torch.testing.assert_close(logits(model), tuned, rtol=1e-3, atol=1e-3)
    ll.detach(model)
    assert torch.equal(logits(model), before)


def test_a_merged_model_is_written_with_its_biases(tmp_path):
    model = tiny("qwen2")
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.bias.normal_()
    ll.attach(model, RANDOM)
    tuned = logits(model)
    ll.export_merged(model, tmp_path)
    written = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(written), tuned, rtol=1e-5, atol=1e-5)


def test_its_update_is_no_low_rank_one_and_that_is_said(tmp_path):
    model = tiny("llama")
    ll.attach(model, RANDOM)
    ll.save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="is IA3, whose ΔW is not in low-rank factors"):
        ll.analyze(model)
    from lora_lab.checkpoint import read_factors

    with pytest.raises(AdapterError, match="holds IA3, whose ΔW is not in low-rank factors"):
        read_factors(tmp_path)


@pytest.mark.parametrize(
    ("config", "kind", "line"),
    [
        ({"target_modules": []}, "llama", "target_modules is empty"),
        ({"init_ia3_weights": "zeros"}, "llama", "init_ia3_weights is 'zeros'"),
        ({"modules_to_save": "lm_head"}, "llama", r"it must be a list: \['lm_head'\]"),
        ({"target_modules": ["embed_tokens"]}, "llama", "embed_tokens is none"),
        ({"target_modules": ["nothing"]}, "llama", "entry 'nothing' matches nothing"),
        (
            {"target_modules": ["k"], "feedforward_modules": ["down"]},
            "llama",
            "entry 'down' is none of the targets",
        ),
        (
            {"target_modules": ["q", "k"], "feedforward_modules": ["k"]},
            "gpt2",
            "name the module itself",
        ),
    ],
)
def test_what_it_cannot_be_is_said_before_anything_changes(config, kind, line):
    model = tiny(kind)
    before = [type(part) for part in model.modules()]
    with pytest.raises(ConfigError, match=line) as refused:
        ll.attach(model, ll.IA3Config(**config))
    assert "\n" not in str(refused.value)
    assert [type(part) for part in model.modules()] == before


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        ("other base", "the adapter is for another base"),
        ("changed", "were changed after LoRA Lab had saved them"),
        ("of another type", "holds nothing of IA3"),
        ("nan", "holds NaN or infinite values"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_changes(damage, line, tmp_path):
    from safetensors.torch import save_file

    model = tiny("llama")
    ll.attach(model, RANDOM)
    ll.save_adapter(model, tmp_path)
    tensors, settings = tensors_of(tmp_path), settings_of(tmp_path)
    other = tiny("gpt2" if damage == "other base" else "llama")
    if damage == "changed":
        (tmp_path / "adapter_config.json").write_text(
            json.dumps(settings | {"modules_to_save": ["lm_head"]})
        )
    elif damage == "of another type":
        save_file({"x": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    elif damage == "nan":
        key = min(tensors)
        save_file(tensors | {key: tensors[key] * torch.nan}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=line):
        ll.load_adapter(other, tmp_path)
    assert not ll.attached(other)


def test_a_call_written_for_peft_needs_only_its_import_changed(tmp_path):
    """The task's head is trained whole, what is excluded is left alone, as PEFT does it."""
    given = {
        "task_type": peft.TaskType.SEQ_CLS,
        "inference_mode": False,
        "target_modules": ["key", "value", "output.dense"],
        "exclude_modules": ["attention.output.dense"],
        "feedforward_modules": ["output.dense"],
        "fan_in_fan_out": False,
    }
    model = tiny_classifier("bert").model
    base = copy.deepcopy(model)
    adapter = ll.attach(model, ll.IA3Config(**given))
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.IA3Config(**given))
    assert adapter.trainable == theirs.get_nb_trainable_parameters()[0]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) / 20)
    ll.save_adapter(model, tmp_path)
    tuned = logits(model)
    torch.testing.assert_close(logits(peft_model(base, tmp_path)), tuned, rtol=1e-5, atol=1e-5)
    other = tiny_classifier("bert").model
    ll.load_adapter(other, tmp_path)
    assert torch.equal(logits(other), tuned)


def test_for_inference_nothing_is_trained():
    model = tiny("llama")
    adapter = ll.attach(model, RANDOM.replace(inference_mode=True))
    assert adapter.trainable == 0
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="inference_mode=True trains nothing"):
        adapter.config.check_steps(3)
