"""The base's own biases beside LoRA's factors: PEFT's `bias`, each adapter having its own."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.file_mutations import rewrite_settings
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import EXACT, assert_changed, peft_model, peft_trained, tensors_of
from tests.helpers.quantized_layers import Linear4bit
from tests.helpers.tiny_models import tiny, tiny_inputs

SMALL = {"r": 2, "lora_alpha": 6}
CASES = {
    "bert": ("bert", {"target_modules": ["query", "dense"]}),
    "its head is trained whole": ("bert", {"target_modules": ["query"], "task_type": "SEQ_CLS"}),
    "a head of two layers": ("distilbert", {"target_modules": ["q_lin", "pre_classifier"]}),
    "a whole module by its end": (
        "distilbert",
        {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier"]},
    ),
    "Conv1D": ("gpt2", {"target_modules": ["c_fc", "c_proj"]}),
    "opt": ("opt", {"target_modules": ["k_proj", "fc2"]}),
    "three biases a block": ("qwen2", {"target_modules": ["v_proj", "down_proj"]}),
    "an image": ("vit", {"target_modules": ["q_proj", "projection"]}),
    "none": ("llama", {"target_modules": ["q_proj"]}),
    "B's too": ("bert", {"target_modules": ["value"], "lora_bias": True}),
    "dora": ("gpt2", {"target_modules": ["c_fc"], "use_dora": True}),
    "a parameter": (
        "bert",
        {"target_modules": ["query"], "target_parameters": ["intermediate.dense.weight"]},
    ),
    "tokens": ("gpt2", {"target_modules": ["c_fc"], "trainable_token_indices": [3, 5]}),
}


def bare(key: str) -> str:
    return key.removeprefix("base_model.model.").replace(".base_layer", "")


def trained_by_peft(model: nn.Module, fields: dict) -> set[str]:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**fields))
    return {
        bare(key)
        for key, parameter in theirs.named_parameters()
        if parameter.requires_grad and key.endswith(".bias") and ".lora_" not in key
        if ".modules_to_save." not in key
    }


@pytest.mark.parametrize("which", ["all", "lora_only"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_biases_learn_and_files_go_both_ways(case, which, tmp_path):
    name, fields = CASES[case]
    fields = {**SMALL, **fields, "bias": which}
    model = tiny(name).double()
    batch, twin = tiny_inputs(model), copy.deepcopy(model)
    weights = {key: p.clone() for key, p in model.named_parameters()}
    before = outputs(model, batch)
    priced = ll.budget(model, ll.LoraConfig(**fields)).parameters_trainable
    adapter = ll.attach(model, ll.LoraConfig(**fields))
    own = {key for key, p in model.named_parameters() if key in weights and p.requires_grad}
    assert own == set(adapter.biases.own) == trained_by_peft(twin, copy.deepcopy(fields))
    if not (fields.get("task_type") or fields.get("modules_to_save")):
        assert priced == adapter.trainable
    stirred(adapter)
    y = outputs(model, batch)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path / "ours")
    read = peft_model(copy.deepcopy(twin), tmp_path / "ours")
    torch.testing.assert_close(outputs(read, batch), y, **EXACT)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, **EXACT)
    ll.unmerge(model)
    assert torch.equal(outputs(model, batch), y)
    ll.detach(model)
    assert all(torch.equal(p, weights[key]) for key, p in model.named_parameters())
    theirs = peft_trained(twin, tmp_path / "theirs", **copy.deepcopy(fields))
    loaded = ll.load_adapter(twin, tmp_path / "theirs")
    assert loaded.config.bias == which
    torch.testing.assert_close(outputs(twin, batch), outputs(theirs, batch), **EXACT)
    ll.save_adapter(twin, tmp_path / "again")
    found, expected = tensors_of(tmp_path / "again"), tensors_of(tmp_path / "theirs")
    for key in expected.keys() & found.keys():
        torch.testing.assert_close(found[key], expected[key], **EXACT)
    # PEFT writes more names of what a module that is trained whole holds.
    biases = {key for key in expected if key.endswith(".bias") and ".lora_" not in key}
    odd = {key for key in biases if ".modules_to_save." in key or ".original_module." in key}
    assert biases - odd <= found.keys()


LEARNED = {
    "bert": ["query", "intermediate.dense"],
    "gpt2": ["c_fc", "c_proj"],  # Conv1D
    "opt": ["q_proj", "v_proj", "fc1"],
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def train(model: nn.Module, batch, parameters) -> None:
    optimizer = torch.optim.AdamW(list(parameters), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        model(**batch).logits.square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("which", ["all", "lora_only"])
@pytest.mark.parametrize("name", LEARNED)
def test_they_learn_as_pefts_do(name, which, tmp_path):
    from peft import PeftModel

    model = tiny(name).double()
    batch, twin = tiny_inputs(model), copy.deepcopy(model)
    config = ll.LoraConfig(**SMALL, target_modules=LEARNED[name], bias=which)
    adapter = ll.attach(model, config)
    ll.save_adapter(model, tmp_path / "start")
    theirs = PeftModel.from_pretrained(twin, tmp_path / "start", is_trainable=True)
    before = outputs(model, batch)
    train(model, batch, adapter.parameters())
    train(theirs, batch, (p for p in theirs.parameters() if p.requires_grad))
    y = outputs(model, batch)
    assert_changed(y, before)
    torch.testing.assert_close(y, outputs(theirs, batch), rtol=1e-5, atol=1e-5)
    ll.save_adapter(model, tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    found, expected = tensors_of(tmp_path / "ours"), tensors_of(tmp_path / "theirs")
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
    assert any(key.endswith(".base_layer.bias") for key in expected)


def test_each_adapter_has_its_own_and_the_base_gets_its_back():
    model = tiny("bert")
    batch = tiny_inputs(model)
    weights = {key: (p.clone(), p.requires_grad) for key, p in model.named_parameters()}
    bare_output = outputs(model, batch)
    answers = {}
    for name, which in (("a", "all"), ("b", "lora_only"), ("c", "none")):
        stirred(
            ll.attach(model, ll.LoraConfig(**SMALL, target_modules=["query"], bias=which), name)
        )
        answers[name] = outputs(model, batch)
    for order in ("cab", "bca"):
        for name in order:
            ll.activate(model, name)
            assert torch.equal(outputs(model, batch), answers[name])
        ll.activate(model, None)
        assert torch.equal(outputs(model, batch), bare_output)
    for name in "ab":
        ll.merge(model, name)
        torch.testing.assert_close(outputs(model, batch), answers[name], rtol=1e-5, atol=1e-5)
    ll.unmerge(model)
    assert torch.equal(outputs(model, batch), answers["b"])
    ll.detach(model, "b")
    ll.activate(model, "a")
    assert torch.equal(outputs(model, batch), answers["a"])
    ll.detach(model)
    for key, parameter in model.named_parameters():
        value, required = weights[key]
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == required


def test_a_module_that_peft_takes_too_much_of_keeps_its_tuned_bias(tmp_path):
    # PEFT takes "pre_classifier" for "classifier" and trains it whole; here its bias learns.
    model = tiny("distilbert").double()
    batch, twin = tiny_inputs(model), copy.deepcopy(model)
    fields = {"target_modules": ["q_lin"], "modules_to_save": ["classifier"], "bias": "all"}
    adapter = ll.attach(model, ll.LoraConfig(**SMALL, **fields))
    assert "pre_classifier.bias" in adapter.biases.own
    assert "classifier.bias" not in adapter.biases.own
    stirred(adapter)
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    torch.testing.assert_close(
        outputs(peft_model(copy.deepcopy(twin), tmp_path), batch), y, **EXACT
    )
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, **EXACT)


def test_what_is_tied_is_one_bias_and_written_under_every_name(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = (
        BertForMaskedLM(BertConfig(vocab_size=30, intermediate_size=12, **sizes)).eval().double()
    )
    batch, twin = {"input_ids": torch.arange(6)[None]}, copy.deepcopy(model)
    for targets in (["query"], ["query", "word_embeddings"]):  # the second adapts the decoder too
        config = ll.LoraConfig(**SMALL, target_modules=targets, bias="all")
        adapter = ll.attach(model, config)
        assert len([name for name in adapter.biases.own if "predictions" in name]) == 3
        stirred(adapter)
        y = outputs(model, batch)
        ll.save_adapter(model, tmp_path)
        read = peft_model(copy.deepcopy(twin), tmp_path)
        torch.testing.assert_close(outputs(read, batch), y, **EXACT)
        ll.merge(model)
        torch.testing.assert_close(outputs(model, batch), y, **EXACT)
        ll.detach(model)
        loaded = copy.deepcopy(twin)
        ll.load_adapter(loaded, tmp_path)
        torch.testing.assert_close(outputs(loaded, batch), y, **EXACT)


@pytest.mark.parametrize("which", ["all", "lora_only"])
def test_quantized_layers_have_their_biases_merged_too(which):
    model = tiny("qwen2")
    for block in model.model.layers:
        block.self_attn.q_proj = Linear4bit(block.self_attn.q_proj)
    batch = tiny_inputs(model)
    before = outputs(model, batch)
    stirred(ll.attach(model, ll.LoraConfig(**SMALL, target_modules=["q_proj"], bias=which)))
    y = outputs(model, batch)
    assert_changed(y, before)
    ll.merge(model, dequantize=True)
    torch.testing.assert_close(outputs(model, batch), y, rtol=1e-4, atol=1e-4)
    ll.unmerge(model)
    assert torch.equal(outputs(model, batch), y)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), before)


def test_the_forecast_and_the_dry_run_count_them():
    config = ll.LoraConfig(**SMALL, target_modules=["c_fc"], bias="all")
    model = tiny("gpt2")
    found = ll.budget(model, config, batch_size=1, sequence_length=8)
    both = [config.replace(bias="none"), ll.BitFitConfig()]  # GPT-2's head has no bias
    assert found.adapted == ll.budget(model, both, batch_size=1, sequence_length=8).adapted
    adapter = ll.attach(tiny("gpt2"), config)
    dry = ll.dry_run(model, config, batch_size=1, sequence_length=8)
    assert dry.gradients == 4 * adapter.trainable == 4 * found.parameters_trainable


def test_what_cannot_be_is_named_before_anything_is_changed(tmp_path):
    with pytest.raises(ConfigError, match="bias is 'oft_only'; use one of 'none', 'all', 'lora_"):
        ll.LoraConfig(bias="oft_only")
    model = tiny("bert")
    config = ll.LoraConfig(**SMALL, target_modules=["query"], bias="all")
    for together in ([config, ll.BitFitConfig()], [ll.BitFitConfig(), config]):
        for call in (ll.attach, ll.budget):
            with pytest.raises(ConfigError, match=r"both claim .*bias; leave one of them out"):
                call(model, together)
    assert ll.attached(model) == {}
    stirred(ll.attach(model, config, "a"))
    with pytest.raises(AdapterError, match=r"trains biases of the base \(bias='all'\)"):
        ll.export_uniform(model, tmp_path / "out")
    with pytest.raises(AdapterError, match="is not a sum of products"):
        ll.combine(model, {"a": 1.0}, "b")
    with (
        pytest.raises(AdapterError, match=r"trains biases of the base .*run its samples apart"),
        ll.mixed_batch(model, ["a", None]),
    ):
        pass
    ll.save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="is a bias in the file and none in this model"):
        ll.load_adapter(without_biases(tiny("bert")), tmp_path)
    for value in ("some", True, ["all"]):
        rewrite_settings(tmp_path, lambda settings, v=value: settings.update(bias=v))
        unchecked(tmp_path)
        told = r"bias is (.*, none of none, all, lora_only|no text)"
        with pytest.raises(AdapterError, match=told):
            ll.load_adapter(tiny("bert"), tmp_path)


def test_a_file_that_lacks_some_is_read_with_a_word(tmp_path):
    model = tiny("bert")
    batch = tiny_inputs(model)
    config = ll.LoraConfig(**SMALL, target_modules=["query", "key"], bias="lora_only")
    adapter = ll.attach(model, config)
    stirred(adapter)
    ll.save_adapter(model, tmp_path)
    tensors = tensors_of(tmp_path)
    gone = [key for key in tensors if key.endswith("layer.0.attention.self.key.base_layer.bias")]
    unchecked(tmp_path, {key: own for key, own in tensors.items() if key not in gone})
    with pytest.warns(UserWarning, match="the file lacks bert.*key.bias; the base's own stay"):
        ll.load_adapter(other := tiny("bert"), tmp_path)
    with torch.no_grad():
        base = dict(tiny("bert").named_parameters())
        name = "bert.encoder.layer.0.attention.self.key.bias"
        dict(model.named_parameters())[name].copy_(base[name])
    assert torch.equal(outputs(other, batch), outputs(model, batch))


def without_biases(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_parameter("bias", None)
    return model


def unchecked(folder, tensors=None) -> None:
    """Write a file's tensors as another tool does: without the checksum."""
    save_file(tensors or tensors_of(folder), folder / "adapter_model.safetensors")
