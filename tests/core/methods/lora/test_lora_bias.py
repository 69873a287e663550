"""B with a bias of its own: PEFT's lora_bias, both ways."""

import copy

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from tests.helpers.file_mutations import rewrite_settings
from tests.helpers.lora_outputs import outputs, stirred
from tests.helpers.peft_files import EXACT, assert_changed, peft_model, peft_trained, tensors_of
from tests.helpers.tiny_models import tiny, tiny_inputs

FIELDS = {"r": 2, "lora_alpha": 6, "lora_bias": True}
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"], "bert": ["query"]}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("rslora", [False, True])
def test_files_go_both_ways_and_it_is_merged_where_the_base_has_a_bias(name, rslora, tmp_path):
    model = tiny(name).double()
    batch = tiny_inputs(model)
    twin, before = copy.deepcopy(model), outputs(model, batch)
    fields = {**FIELDS, "target_modules": TARGETS[name], "use_rslora": rslora}
    adapter = ll.attach(model, ll.LoraConfig(**fields))
    torch.testing.assert_close(outputs(model, batch), before, **EXACT)
    theirs = peft_trained(twin, tmp_path / "theirs", **fields)
    stirred(adapter)
    y = outputs(model, batch)
    assert_changed(y, before)
    ll.save_adapter(model, tmp_path / "ours")
    read = peft_model(copy.deepcopy(twin), tmp_path / "ours")
    torch.testing.assert_close(outputs(read, batch), y, **EXACT)
    if name == "llama":
        with pytest.raises(AdapterError, match="has no bias that lora_bias could be merged into"):
            ll.merge(model)
    else:
        ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, **EXACT)
    ll.detach(model)
    assert torch.equal(outputs(model, batch), before)
    loaded = ll.load_adapter(twin, tmp_path / "theirs")
    assert loaded.config.lora_bias
    torch.testing.assert_close(outputs(twin, batch), outputs(theirs, batch), **EXACT)


def test_slices_of_one_matrix_have_theirs(tmp_path):
    model = tiny("gpt2").double()
    batch = tiny_inputs(model)
    twin = copy.deepcopy(model)
    config = ll.LoraConfig(**FIELDS, target_modules=["q", "v"], alpha_pattern={"v": 3})
    stirred(ll.attach(model, config))
    y = outputs(model, batch)
    ll.save_adapter(model, tmp_path)
    read = peft_model(copy.deepcopy(twin), tmp_path)
    torch.testing.assert_close(outputs(read, batch), y, **EXACT)
    ll.load_adapter(twin, tmp_path)
    torch.testing.assert_close(outputs(twin, batch), y, **EXACT)
    ll.merge(model)
    torch.testing.assert_close(outputs(model, batch), y, **EXACT)


def test_they_learn_as_peft_s_and_are_counted():
    model = tiny("gpt2").double()
    batch = tiny_inputs(model)
    config = ll.LoraConfig(**FIELDS, target_modules=["c_proj"])
    adapter = ll.attach(model, config)
    plain = ll.budget(tiny("gpt2"), config.replace(lora_bias=False)).parameters_trainable
    outs = sum(site.site.out_features for site in adapter.sites.values())
    assert adapter.trainable == ll.budget(tiny("gpt2"), config).parameters_trainable == plain + outs
    model(**batch).logits.square().mean().backward()
    with torch.no_grad():
        for site in adapter.sites.values():
            # y = … + b + s·β
            base = dict(model.named_modules())[site.site.module].bias
            assert site.bias.grad.abs().max() > 0
            assert base.grad is None
    assert ll.dry_run(tiny("gpt2"), config, batch_size=1, sequence_length=8).peak


def test_samples_of_one_batch_have_their_own():
    model = tiny("llama").double()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        adapter = ll.attach(model, ll.LoraConfig(**FIELDS, init_lora_weights=False), name)
        assert all(site.bias.abs().max() > 0 for site in adapter.sites.values())
    ids = torch.tensor([[3, 4, 5], [5, 4, 3], [3, 3, 4]])
    with ll.mixed_batch(model, ["a", None, "b"]):
        mixed = model(input_ids=ids).logits
    for row, name in enumerate(["a", None, "b"]):
        ll.activate(model, name)
        torch.testing.assert_close(mixed[row], model(input_ids=ids).logits[row], **EXACT)


def test_what_cannot_be_is_named(tmp_path):
    for fields in ({"use_dora": True}, {"init_lora_weights": "gaussian"}):
        with pytest.raises(ConfigError, match="lora_bias=True goes with use_dora=False"):
            ll.LoraConfig(lora_bias=True, **fields)
    model = tiny("llama")
    with pytest.raises(ConfigError, match="lora_bias is for linear layers"):
        ll.attach(model, ll.LoraConfig(**FIELDS, target_modules=["embed_tokens"]))
    assert ll.attached(model) == {}
    ll.attach(model, ll.LoraConfig(**FIELDS), "a")
    with pytest.raises(AdapterError, match="has biases in B"):
        ll.export_uniform(model, tmp_path / "out")
    with pytest.raises(AdapterError, match="is not a sum of products"):
        ll.combine(model, {"a": 1.0}, "b")
    ll.save_adapter(model, tmp_path, "a")
    assert any(key.endswith("lora_B.bias") for key in tensors_of(tmp_path))
    rewrite_settings(tmp_path, lambda settings: settings.pop("lora_bias"))
    with pytest.raises(AdapterError, match="has a bias in B, and lora_bias=False"):
        ll.load_adapter(tiny("llama"), tmp_path)
