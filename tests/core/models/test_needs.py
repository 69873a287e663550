"""What a model takes is known before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lora_lab as ll
from lora_lab.errors import ModelError
from lora_lab.models import needs as module
from lora_lab.models.load import load_model
from lora_lab.models.needs import ModelNeeds, model_needs
from tests.helpers.tiny_chat import tiny_chat_model
from tests.helpers.tiny_files import tiny_model_folder

CPU = torch.device("cpu")
SEVEN = ModelNeeds("seven", "llama", None, 7_000_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("needs") / "model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_are_those_that_loading_brings(folder: Path, dtype: str) -> None:
    found = model_needs(str(folder))
    model = load_model(folder, "cpu", dtype).model
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.weights(dtype) == sum(parameter.nbytes for parameter in model.parameters())
    assert (found.kind, found.download, found.hub_id) == ("llama", 0, None)


def test_a_size_of_the_catalogue_is_counted_without_its_weights() -> None:
    entry = ll.catalogue()["minilm-l6"]
    found = model_needs("minilm-l6")
    assert (found.license, found.kind) == (entry.license, "bert")
    assert found.parameters == 22_713_216  # sentence-transformers/all-MiniLM-L6-v2's own card


def test_counting_sets_no_default_dtype_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_chat_model()
    folder = tmp_path / "half"
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    set_dtypes: list[torch.dtype] = []
    monkeypatch.setattr(torch, "set_default_dtype", set_dtypes.append)
    found = model_needs(str(folder))
    assert set_dtypes == []
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_quantized_weights_take_what_they_take_on_the_disk(folder: Path, tmp_path: Path) -> None:
    packed = tiny_model_folder(tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (packed / "config.json").write_text(json.dumps(config))
    size = (packed / "model.safetensors").stat().st_size
    assert model_needs(str(packed)).weights("bfloat16") == size


def test_what_does_not_fit_is_refused_with_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: 8 * 2**30)
    assert SEVEN.lines(CPU, "bfloat16") == [
        "7.00 B parameters · llama · license: not stated",
        "its weights need 13 GiB in bfloat16, you have 8 GiB free in memory",
    ]
    with pytest.raises(ModelError, match=r"^seven needs 13 GiB .* have 8 GiB free in memory; take"):
        SEVEN.check(CPU, torch.bfloat16)
    monkeypatch.setattr(module, "available_memory", lambda: 16 * 2**30)
    SEVEN.check(CPU, torch.bfloat16)
    with pytest.raises(ModelError, match=r"26\.1 GiB"):
        SEVEN.check(CPU, "float32")


def test_a_gpu_needs_the_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        def free_and_total(self) -> tuple[int, int]:
            return 6 * 2**30, 8 * 2**30

        def name(self) -> str:
            return "NVIDIA T4"

    monkeypatch.setattr(module, "available_memory", lambda: 64 * 2**30)
    monkeypatch.setattr(module, "hardware", lambda _: Gpu())
    with pytest.raises(ModelError, match="you have 6 GiB free on the NVIDIA T4"):
        SEVEN.check(torch.device("cuda"), "float16")


def test_where_nobody_tells_the_memory_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: None)
    SEVEN.check(CPU, "float32")
    assert SEVEN.lines(CPU, "float32")[1] == "its weights need 26.1 GiB in float32"


def test_what_comes_from_the_hub_is_said_with_its_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_lab.models.download import HubFiles
    from lora_lab.models.places import Place

    place = Place("owner/tiny", str(folder), "hub", "owner/tiny", None, local_only=False)
    monkeypatch.setattr(module, "find_model", lambda _: place)
    monkeypatch.setattr(module, "hub_files", lambda _: HubFiles({"m": 5}, 14 * 2**30, "mit"))
    found = model_needs("owner/tiny")
    assert (found.download, found.license, found.hub_id) == (14 * 2**30, "mit", str(folder))
    assert "license: mit · 14 GiB to download" in found.lines(CPU, "float32")[0]


@pytest.mark.parametrize("name", ["no-such", "/no/such/folder", "gpt2-medium"])
def test_what_is_no_model_is_refused_as_load_model_does(name: str) -> None:
    with pytest.raises(ModelError) as refused:
        model_needs(name)
    with pytest.raises(ModelError) as loading:
        load_model(name)
    assert str(refused.value) == str(loading.value)
