"""PEFT reads what we write and we read what PEFT writes; damaged files end in one clear line."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lab as ll
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import everything, outputs
from tests.helpers.peft_files import peft_model
from tests.helpers.tiny_architectures import tiny_architecture
from tests.helpers.tiny_models import tiny, tiny_inputs

CONFIGS = {
    "llama": everything(r=4, lora_alpha=8),
    "gpt2": everything(r=2, target_modules=["q", "v", "o", "up"], rank_pattern={"up": 4}),
    "gpt-neox": everything(r=3, target_modules=["k", "down"], alpha_pattern={"down": 1.5}),
    "phi3": everything(r=2, target_modules=["q", "k", "gate", "up"], rank_pattern={"k": 3}),
    "t5": everything(r=2, lora_alpha=3, target_modules=["q", "cross.v"], use_rslora=True),
    "bert": everything(r=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_loads_what_we_save_with_the_same_outputs(name, tmp_path):
    model = tiny(name).double()
    batch = tiny_inputs(model)
    bare = copy.deepcopy(model)
    ll.attach(model, CONFIGS[name])
    ll.save_adapter(model, tmp_path)
    theirs = peft_model(bare, tmp_path)
    torch.testing.assert_close(outputs(theirs, batch), outputs(model, batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_our_own_round_trip_is_bit_exact(name, tmp_path):
    model = tiny(name).double()
    batch = tiny_inputs(model)
    bare = copy.deepcopy(model)
    saved = ll.attach(model, CONFIGS[name])
    loaded = ll.load_adapter(bare, ll.save_adapter(model, tmp_path))
    assert loaded.sites.keys() == saved.sites.keys()
    for path, site in saved.sites.items():
        assert torch.equal(site.A, loaded.sites[path].A)
        ratio_is_exact = len({s.scale for s in saved.sites.values()}) == 1
        if ratio_is_exact or site.site.rows is None:
            assert torch.equal(site.B, loaded.sites[path].B)
            assert loaded.sites[path].scale == pytest.approx(site.scale, rel=1e-12)
    torch.testing.assert_close(outputs(bare, batch), outputs(model, batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "targets", "extra"),
    [
        ("llama", ["q_proj", "down_proj"], {}),
        ("llama", ["q_proj", "v_proj"], {"rank_pattern": {"v_proj": 2}, "use_rslora": True}),
        ("llama", "all-linear", {"alpha_pattern": {r"layers\.0\.mlp\.up_proj": 3}}),
        ("gpt2", ["c_attn", "c_proj"], {"fan_in_fan_out": True}),
        ("gpt-neox", ["query_key_value"], {}),
    ],
)
def test_we_load_what_peft_saves_with_the_same_outputs(name, targets, extra, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = tiny(name).double()

    batch = tiny_inputs(model)
    theirs = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, **extra),
    )
    theirs.save_pretrained(tmp_path)
    ll.load_adapter(model, tmp_path)
    torch.testing.assert_close(outputs(model, batch), outputs(theirs, batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "task"),
    [("bart", "SEQ_2_SEQ_LM"), ("llava", "CAUSAL_LM"), ("whisper", None), ("blip", None)],
)
def test_peft_is_told_of_a_task_whose_inputs_the_model_takes(name, task, tmp_path):
    model = tiny_architecture(name)
    ll.attach(model, everything())
    ll.save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == task


def test_paths_are_full_and_escaped_in_the_file(tmp_path):
    model = tiny("llama")
    ll.attach(model, ll.LoraConfig(r=2, target_modules=["q"], rank_pattern={r"layers\.1\..*": 4}))
    settings = json.loads((ll.save_adapter(model, tmp_path) / "adapter_config.json").read_text())
    assert settings["target_modules"] == [f"model.layers.{n}.self_attn.q_proj" for n in range(2)]
    # Both ranks occur once, so either may be the common one.
    (key,) = settings["rank_pattern"]
    assert key in {rf"^model\.layers\.{n}\.self_attn\.q_proj" for n in range(2)}
    assert settings["task_type"] == "CAUSAL_LM"


def test_a_merged_adapter_is_saved_as_it_was(tmp_path):
    model = tiny("llama")
    adapter = ll.attach(model, everything())
    ll.merge(model)
    ll.save_adapter(model, tmp_path)
    twin = tiny("llama")
    loaded = ll.load_adapter(twin, tmp_path)
    assert all(torch.equal(s.B, loaded.sites[p].B) for p, s in adapter.sites.items())


@pytest.fixture
def saved(tmp_path):
    model = tiny("llama")
    ll.attach(model, everything(target_modules=["q", "v"]))
    return ll.save_adapter(model, tmp_path)


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def reconfigure(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def damage(what, folder):
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    match what:
        case "no config":
            config.unlink()
        case "broken config":
            config.write_text("{")
        case "foreign config":
            reconfigure(folder, peft_type="LOHA")
        case "no weights":
            weights.unlink()
        case "pickle":
            weights.rename(folder / "adapter_model.bin")
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "half a pair":
            rewrite(folder, lambda t: t.pop(KEY.format("A")))
        case "unknown key":
            rewrite(folder, lambda t: t.update({"model.embed.weight": torch.zeros(2, 2)}))
        case "nan":
            rewrite(folder, lambda t: t[KEY.format("A")].fill_(float("nan")))
        case "wrong width":
            rewrite(folder, lambda t: t.update({KEY.format("A"): torch.zeros(3, 5)}))
        case "wrong rank":
            reconfigure(folder, r=7)
        case "dora":
            reconfigure(folder, use_dora=True)
        case "saved modules":
            reconfigure(folder, modules_to_save=["lm_head"])
            rewrite(folder, lambda t: None)  # without the checksum, as another tool would


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "has no adapter_config.json; name the folder"),
        ("broken config", "is not readable JSON"),
        ("foreign config", "describes 'LOHA', not a LoRA adapter"),
        ("no weights", "has no adapter_model.safetensors"),
        ("pickle", "holds a pickle (adapter_model.bin), which can run code"),
        ("truncated", "is damaged"),
        ("half a pair", "has lora_B without its partner"),
        ("unknown key", "tensor 'model.embed.weight' is neither a LoRA factor nor in"),
        ("nan", "is not a finite matrix"),
        ("wrong width", "the adapter is for another base"),
        ("wrong rank", "but the config says r=7"),
        ("dora", "has no magnitude, and use_dora=True"),
        ("saved modules", "the file names lm_head in modules_to_save and lacks 'lm_head.weight'"),
    ],
)
def test_a_damaged_adapter_is_named_and_nothing_is_changed(saved, what, message):
    damage(what, saved)
    model = tiny("llama")
    before = [type(m) for m in model.modules()]
    with pytest.raises(AdapterError) as caught:
        ll.load_adapter(model, saved)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [type(m) for m in model.modules()] == before


def test_an_adapter_for_another_base_names_the_module(saved):
    with pytest.raises(AdapterError, match=r"for another base: this model has no .*layers\.0"):
        ll.load_adapter(tiny("gpt2"), saved)


def test_saving_without_an_adapter_says_what_to_call(tmp_path):
    with pytest.raises(AdapterError, match=r"no adapter; call attach"):
        ll.save_adapter(tiny("llama"), tmp_path)
