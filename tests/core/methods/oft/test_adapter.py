"""OFT against PEFT: what it computes, its gradients and steps, its files both ways."""

import copy
import json
import warnings

import peft
import pytest
import torch
from peft.tuners.oft.layer import MultiplicativeDropoutLayer, OFTLayer

import lora_lab as ll
from lora_lab.errors import AdapterError, ConfigError
from lora_lab.methods.oft.targets import divisor
from tests.helpers.peft_files import peft_model, settings_of
from tests.helpers.quantized_layers import quantized
from tests.helpers.tiny_models import tiny

IDS = torch.arange(12).view(2, 6) + 3
SMALL = {"oft_block_size": 8, "target_modules": "all-linear"}
VARIANTS = {
    "series": SMALL,
    "short series": {**SMALL, "num_cayley_neumann_terms": 2},
    "three terms": {**SMALL, "num_cayley_neumann_terms": 3},
    "long series": {**SMALL, "num_cayley_neumann_terms": 7},
    "exact": {**SMALL, "use_cayley_neumann": False},
    "blocks": {"r": 4, "oft_block_size": 0, "target_modules": "all-linear"},
    "shared": {**SMALL, "block_share": True},
    "coft": {**SMALL, "coft": True, "eps": 0.3},
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def roundtrip(model, config, folder):
    """Attach, save; PEFT reads it, saves, and it is read again: all answer the same."""
    base = copy.deepcopy(model)
    torch.manual_seed(0)
    adapter = ll.attach(model, config)
    tuned = logits(model)
    assert (tuned - logits(base)).abs().max() > 0.05
    ll.save_adapter(model, folder / "ours")
    theirs = peft_model(copy.deepcopy(base), folder / "ours")
    torch.testing.assert_close(logits(theirs.eval()), tuned, rtol=1e-5, atol=1e-5)
    theirs.save_pretrained(folder / "theirs")
    for name in ("ours", "theirs"):
        other = copy.deepcopy(base)
        loaded = ll.load_adapter(other, folder / name)
        torch.testing.assert_close(logits(other), tuned, rtol=1e-5, atol=1e-5)
        if name == "ours":
            assert loaded.config == adapter.config
    return theirs, tuned


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_reads_it_and_it_reads_peft(variant, tmp_path):
    model = tiny("llama")
    first = logits(model)
    config = ll.OFTConfig(**VARIANTS[variant], init_weights=False)
    theirs, tuned = roundtrip(model, config, tmp_path)
    ll.merge(model)
    torch.testing.assert_close(logits(model), tuned, rtol=1e-4, atol=1e-5)
    merged = theirs.merge_and_unload().state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, merged[name], rtol=1e-5, atol=1e-6)
    ll.detach(model)
    assert torch.equal(logits(model), first)


@pytest.mark.parametrize("kind", ["phi3", "bloom", "gpt-neox", "falcon-grouped"])
def test_a_fused_matrix_is_rotated_as_a_whole(kind, tmp_path):
    model = tiny(kind)
    roundtrip(model, ll.OFTConfig(**SMALL, init_weights=False), tmp_path)


def test_on_conv1d_it_acts_and_is_saved_in_a_form_of_ours(tmp_path):
    """PEFT has no OFT of a Conv1D: the merged matrix is the oracle."""
    model = tiny("gpt2")
    base = copy.deepcopy(model)
    ll.attach(model, ll.OFTConfig(**SMALL, init_weights=False))
    tuned = logits(model)
    ll.save_adapter(model, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    ll.load_adapter(base, tmp_path)
    assert torch.equal(logits(base), tuned)
    ll.merge(model)
    torch.testing.assert_close(logits(model), tuned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["series", "exact", "shared", "coft"])
def test_steps_are_pefts(variant):
    """The same gradients, and with COFT the same place that a step starts from."""
    ours, theirs = tiny("qwen2"), tiny("qwen2")
    theirs.load_state_dict(ours.state_dict())
    values = {**VARIANTS[variant], "target_modules": ["k_proj", "down_proj"]}
    adapter = ll.attach(ours, ll.OFTConfig(**values))
    wrapped = peft.get_peft_model(theirs, peft.OFTConfig(**values))
    layers = {
        name.removeprefix("base_model.model."): module.oft_R["default"].weight
        for name, module in wrapped.named_modules()
        if isinstance(module, OFTLayer)
    }
    own = {name: p for name, (p,) in adapter.parameters_by_location().items()}
    assert own.keys() == layers.keys()
    for model, learned in ((ours, own), (wrapped, layers)):
        optimizer = torch.optim.SGD(learned.values(), lr=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
    for name, entries in own.items():
        assert entries.abs().max() > 1e-4, name
        torch.testing.assert_close(entries, layers[name], rtol=1e-4, atol=1e-6)


def test_exact_rotations_are_orthogonal():
    """So they keep the angles between W₀'s rows: what OFT is for."""
    model = tiny("llama")
    adapter = ll.attach(model, ll.OFTConfig(**VARIANTS["exact"], init_weights=False))
    for _, update in adapter.layers.values():
        R = update.rotation().double()
        one = torch.eye(8, dtype=R.dtype).expand_as(R)
        torch.testing.assert_close(R @ R.mT, one, rtol=0, atol=1e-5)
        assert (R - one).abs().max() > 0.05


def test_dropout_leaves_as_many_blocks_as_pefts_layer_would():
    model = tiny("llama")
    config = ll.OFTConfig(**SMALL, module_dropout=0.3, init_weights=False)
    adapter = ll.attach(model, config)
    _, update = adapter.layers["model.layers.0.mlp.down_proj"]
    R, one = update.rotation(), torch.eye(8)
    drop = MultiplicativeDropoutLayer(0.3).train()
    torch.manual_seed(0)
    expected = sum(bool(torch.equal(block, one)) for block in drop(R.detach()))
    model.train()
    dropped = update.rotation()
    identical = [torch.equal(block, one) for block in dropped]
    assert sum(identical) == expected == 1
    others = [i for i, same in enumerate(identical) if not same]
    assert torch.equal(dropped[others], R[others])
    model.eval()
    assert torch.equal(update.rotation(), R)


def test_a_size_that_does_not_divide_becomes_pefts_with_a_warning(tmp_path):
    model = tiny("llama")
    base = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"oft_block_size 20 does not divide the 48 inputs.*16"):
        adapter = ll.attach(model, ll.OFTConfig(oft_block_size=20, target_modules=["down"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.OFTConfig(oft_block_size=20, target_modules=["down_proj"])
        theirs = peft.get_peft_model(copy.deepcopy(base), config)
    assert adapter.trainable == theirs.get_nb_trainable_parameters()[0]
    found = ll.budget(base, adapter.config)
    assert found.parameters_trainable == adapter.trainable
    for width, wanted in ((48, 20), (32, 5), (33, 32), (7, 3), (12, 40), (30, 4)):
        assert divisor(width, wanted) == OFTLayer.adjust_oft_parameters(None, width, wanted) or (
            width % wanted == 0
        )


def test_in_bfloat16_it_answers_as_peft(tmp_path):
    model = tiny("llama").bfloat16()
    base = copy.deepcopy(model)
    adapter = ll.attach(model, ll.OFTConfig(**SMALL, init_weights=False))
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    ll.save_adapter(model, tmp_path)
    assert torch.equal(logits(peft_model(base, tmp_path)), logits(model))


def test_samples_of_one_batch_have_rotations_of_their_own():
    model = tiny("llama")
    alone = {}
    for name in ("first", "second"):
        ll.attach(model, ll.OFTConfig(**SMALL, init_weights=False), name)
        alone[name] = logits(model)
    with ll.mixed_batch(model, ["second", "first"]):
        mixed = logits(model)
    torch.testing.assert_close(mixed[0], alone["second"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], alone["first"][1], rtol=1e-4, atol=1e-5)


def test_over_a_quantized_base_it_acts_and_merges_on_demand():
    model = quantized("qwen2")
    ll.attach(model, ll.OFTConfig(**SMALL, init_weights=False))
    tuned = logits(model)
    ll.merge(model, dequantize=True)
    torch.testing.assert_close(logits(model), tuned, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "kind", "line"),
    [
        ({"target_modules": []}, "llama", "target_modules is empty"),
        ({"r": 4}, "llama", "r is 4 and oft_block_size 32; give one of them"),
        ({"oft_block_size": 0}, "llama", "r is 0 and oft_block_size 0; give one of them"),
        ({"bias": "all"}, "llama", "bias='all' is not supported"),
        ({"num_cayley_neumann_terms": 1}, "llama", "must be a whole number of at least 2"),
        ({"module_dropout": 1}, "llama", "must lie in"),
        ({"coft": 1.0}, "llama", "coft is 1.0; use True or False"),
        ({"r": 32, "oft_block_size": 0}, "llama", "its blocks would have one each"),
        ({"target_modules": ["embed_tokens"]}, "llama", "embed_tokens is none"),
        ({"target_modules": ["q"]}, "gpt2", "name the module itself in target_modules: c_attn"),
    ],
)
def test_what_it_cannot_be_is_said_before_anything_changes(config, kind, line):
    model = tiny(kind)
    before = [type(part) for part in model.modules()]
    with pytest.raises(ConfigError, match=line) as refused:
        ll.attach(model, ll.OFTConfig(**config))
    assert "\n" not in str(refused.value)
    assert [type(part) for part in model.modules()] == before


def test_a_file_of_an_older_peft_or_another_base_is_refused(tmp_path):
    model = tiny("llama")
    ll.attach(model, ll.OFTConfig(**SMALL))
    ll.save_adapter(model, tmp_path)
    with pytest.raises(AdapterError, match="the adapter is for another base"):
        ll.load_adapter(tiny("opt"), tmp_path)
    theirs = peft_model(tiny("llama"), tmp_path)
    theirs.save_pretrained(tmp_path)  # without our checksum
    settings = settings_of(tmp_path)
    for changes, line in (
        ({"peft_version": "0.17.1"}, "it was saved before PEFT 0.18"),
        ({"oft_block_size": 4}, "has blocks of"),
        ({"bias": "oft_only"}, "bias='oft_only' is not supported"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings | changes))
        other = tiny("llama")
        with pytest.raises(AdapterError, match=line):
            ll.load_adapter(other, tmp_path)
        assert not ll.attached(other)


def test_blocks_and_layers_that_are_left_out_are_pefts():
    given = {
        "oft_block_size": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "exclude_modules": ["v_proj"],
        "layers_to_transform": 1,
        "task_type": "CAUSAL_LM",
    }
    model = tiny("llama")
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.OFTConfig(**given))
    adapter = ll.attach(model, ll.OFTConfig(**given))
    assert list(adapter.layers) == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
    ]
    assert adapter.trainable == theirs.get_nb_trainable_parameters()[0]
