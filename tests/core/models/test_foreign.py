"""What a stranger's model asks transformers to fetch, unpickle, import or build: refused before."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.utils import find_adapter_config_file

from lora_lab.errors import ModelError
from lora_lab.models import load_model
from tests.helpers.tiny_text import tiny_llama


def change(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def listed(folder: Path, name: Any, index: str = "model.safetensors.index.json") -> None:
    """Have an index name one file for all weights, which are pickled there."""
    state = tiny_llama().state_dict()
    if isinstance(name, str) and name.endswith(".bin"):
        torch.save(state, folder / name)
    (folder / "model.safetensors").rename(folder.parent / "mine.safetensors")
    weights = dict.fromkeys(state, name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weights}))


@pytest.mark.parametrize(
    "name", ["w.bin", "../mine.safetensors", "/etc/x.safetensors", "..\\x.safetensors", "C:w.bin"]
)
def test_an_index_names_safetensors_beside_it_alone(folder: Path, name: str) -> None:
    listed(folder, name)
    with pytest.raises(ModelError, match=r"for weights, which is no \.safetensors in its folder"):
        load_model(folder, device="cpu")


def test_a_config_names_no_pickle_either(folder: Path) -> None:
    torch.save(tiny_llama().state_dict(), folder / "adapter_model.bin")
    change(folder, transformers_weights="adapter_model.bin")
    with pytest.raises(ModelError, match=r"'adapter_model\.bin' for weights, which is no"):
        load_model(folder, device="cpu")


def test_nor_an_index_of_pickles_by_another_name(folder: Path) -> None:
    listed(folder, "w.bin", "other.safetensors.index.json")
    change(folder, transformers_weights="other.safetensors.index.json")
    with pytest.raises(ModelError, match=r"'w\.bin' for weights, which is no"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": []}}']
)
def test_an_index_that_is_none_is_one_line(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match="lists no files of weights; fetch it again"):
        load_model(folder, device="cpu")


def test_an_adapter_beside_the_weights_is_not_on_the_model_and_imports_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT, where it is installed, imports what "megatron_core" names."""
    pytest.importorskip("peft")
    (tmp_path / "names_a_module.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}
    settings |= {"megatron_config": {"a": 1}, "megatron_core": "names_a_module"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{name}A.weight": torch.ones(2, 32), f"{name}B.weight": torch.ones(32, 2)}
    torch.save(factors, folder / "adapter_model.bin")
    if find_adapter_config_file(str(folder), subfolder="x") is not None:  # transformers to 5.15
        with pytest.raises(ModelError, match="move it into a folder of its own"):
            load_model(folder, device="cpu")
    else:
        with pytest.warns(UserWarning, match="has an adapter beside its weights"):
            lm = load_model(folder, device="cpu")
        assert {*lm.model.state_dict()} == {*tiny_llama().state_dict()}
    assert "names_a_module" not in sys.modules


def test_a_transformers_that_would_put_it_on_all_the_same_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those up to 5.15 do, which heed no subfolder of a folder on this machine."""
    beside = folder / "adapter_config.json"
    beside.write_text("{}")
    monkeypatch.setattr("transformers.utils.is_peft_available", lambda: True)
    monkeypatch.setattr("transformers.utils.find_adapter_config_file", lambda *_, **__: str(beside))
    with pytest.raises(ModelError, match=r"beside its weights.*move it into a folder of its own"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("entry", "installed", "fetched"),
    [
        ({"attn_implementation": "flash_attention_2"}, False, True),
        ({"_attn_implementation": "paged|flash_attention_3"}, False, True),
        ({"text_config": {"attn_implementation": {"vision": "flash_attention_99"}}}, True, True),
        ({"experts_implementation": "sonicmoe"}, False, True),
        ({"attn_implementation": "flash_attention_2"}, True, False),
        ({"attn_implementation": "eager", "experts_implementation": "grouped_mm"}, False, False),
    ],
)
def test_no_kernel_stands_in_for_what_is_not_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, entry: Any, installed: bool, fetched: bool
) -> None:
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    asked: list[object] = []

    def load(*given: object, **_: object) -> None:
        asked.append(given)
        raise OSError("asked")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", load)
    change(folder, **entry)
    with pytest.raises(ModelError, match="fetch code from the hub" if fetched else "asked"):
        load_model(folder, device="cpu")
    assert bool(asked) is not fetched


@pytest.mark.parametrize(
    "entry",
    [
        {"num_hidden_layers": 10**9},
        {"n_layer": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"depths": [2, 10**9]},
        {"num_labels": 10**10},
        {"num_local_experts": 10**9},
    ],
)
def test_endless_parts_are_refused_before_they_are_made(folder: Path, entry: Any) -> None:
    change(folder, **entry)
    with pytest.raises(ModelError, match=r"has \w+: 1[0,]+, more than any model"):
        load_model(folder, device="cpu")


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.skipif(os.name == "nt", reason="no pipes")
@pytest.mark.parametrize("make", [_sparse, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_file_beside_that_never_ends_is_not_opened(
    folder: Path, name: str, make: Callable[[Path], object]
) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(ModelError, match=rf"{name} is no regular file, nearly all holes or"):
        load_model(folder, device="cpu")
