"""Our own adapter files: sealed, compared with the model first, and every flaw one clear line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_lab as ll
from lora_lab.checkpoint.checksum import CHECKSUM_KEY, checksum
from lora_lab.checkpoint.files import NATIVE_CONFIG_FILE, NATIVE_WEIGHTS_FILE, read_tensors
from lora_lab.errors import AdapterError
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs


@pytest.fixture
def saved(tmp_path):
    model = tiny("gpt2")
    adapter = ll.attach(model, ll.BitFitConfig())
    with torch.no_grad():
        for bias in adapter.parameters():
            bias.add_(torch.randn_like(bias))
    return model, ll.save_adapter(model, tmp_path / "bitfit")


def rewrite(folder, **changes):
    path = folder / NATIVE_CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_comes_back_bit_for_bit(saved):
    model, folder = saved
    other = tiny("gpt2")
    assert ll.load_adapter(other, folder).method == "BitFit"
    batch = tiny_inputs(model)
    assert torch.equal(outputs(other, batch), outputs(model, batch))


def test_the_folder_holds_one_adapter_whatever_was_there(saved):
    model, folder = saved
    ll.attach(model, ll.LoraConfig(r=2), "lora")
    ll.save_adapter(model, folder, "lora")
    assert not (folder / NATIVE_CONFIG_FILE).exists()
    assert ll.load_adapter(tiny("gpt2"), folder).method == "LoRA"
    ll.save_adapter(model, folder, "default")
    assert ll.load_adapter(tiny("gpt2"), folder).method == "BitFit"
    assert sorted(p.name for p in folder.iterdir()) == [NATIVE_CONFIG_FILE, NATIVE_WEIGHTS_FILE]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"format": 2}, "has format 2, and this version reads 1; update LoRA Lab"),
        ({"config": {"class": "LoraLabError"}}, "its class must be one of"),
        ({"config": {"class": "BitFitConfig", "evil": 1}}, "has no field 'evil'"),
        ({"config": {"class": "BitFitConfig", "new_biases": True}}, "were changed after"),
        ({"config": None}, "config is None"),
        ({"parts": ["../elsewhere"]}, "parts is"),
        ({"parts": "1-lora"}, "parts is"),
        ({"parts": []}, "parts is"),
    ],
)
def test_foreign_settings_end_in_one_line(saved, changes, line):
    _, folder = saved
    rewrite(folder, **changes)
    model = tiny("gpt2")
    with pytest.raises(AdapterError, match=line):
        ll.load_adapter(model, folder)
    assert not ll.attached(model)


def test_a_flipped_number_a_missing_file_and_a_cut_one_are_noticed(saved):
    _, folder = saved
    path = folder / NATIVE_WEIGHTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(AdapterError, match="were changed after LoRA Lab had saved them"):
        ll.load_adapter(tiny("gpt2"), folder)
    path.write_bytes(whole[:-4])
    with pytest.raises(AdapterError, match="is damaged"):
        ll.load_adapter(tiny("gpt2"), folder)
    path.unlink()
    with pytest.raises(AdapterError, match="there is no file"):
        ll.load_adapter(tiny("gpt2"), folder)


def test_without_its_checksum_it_is_not_ours(saved):
    _, folder = saved
    save_file(load_file(folder / NATIVE_WEIGHTS_FILE), folder / NATIVE_WEIGHTS_FILE)
    with pytest.raises(AdapterError, match="were changed after"):
        ll.load_adapter(tiny("gpt2"), folder)


@pytest.mark.parametrize(
    ("base", "line"), [("bert", "misses|has, and this"), ("opt", "misses|has")]
)
def test_another_base_is_refused_before_anything_changes(saved, base, line):
    _, folder = saved
    model = tiny(base)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(AdapterError, match="load it onto the base it was made for"):
        ll.load_adapter(model, folder)
    assert not ll.attached(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_nan_is_not_loaded(tmp_path, monkeypatch):
    # Only an earlier version wrote it.
    monkeypatch.setattr("lora_lab.checkpoint.saving.check_finite", lambda *_: None)
    model = tiny("gpt2")
    adapter = ll.attach(model, ll.BitFitConfig())
    with torch.no_grad():
        next(adapter.parameters()).fill_(float("nan"))
    with pytest.raises(AdapterError, match="holds NaN or infinite values"):
        ll.load_adapter(tiny("gpt2"), ll.save_adapter(model, tmp_path))


@pytest.mark.parametrize("kind", [ll.PrefixEmbedConfig, ll.PrefixLayerConfig])
def test_no_more_tokens_are_made_than_the_file_has(tmp_path, kind, monkeypatch):
    model = tiny("t5")  # its positions have no end
    ll.attach(model, kind(2, 1))
    folder = ll.save_adapter(model, tmp_path / "tokens")
    config = {"class": kind.__name__, **kind(500, 0).to_dict()}
    stored = read_tensors(folder / NATIVE_WEIGHTS_FILE, allow_pickle=False)[0]
    tensors = load_file(folder / NATIVE_WEIGHTS_FILE)
    sealed = {CHECKSUM_KEY: checksum(stored, config)}  # whoever made the file can do so
    save_file(tensors, folder / NATIVE_WEIGHTS_FILE, metadata=sealed)
    rewrite(folder, config=config)
    monkeypatch.setattr("lora_lab.checkpoint.loading.build", None)
    with pytest.raises(AdapterError, match=r"is \(3, \d+\), and the config says 500 tokens"):
        ll.load_adapter(tiny("t5"), folder)
