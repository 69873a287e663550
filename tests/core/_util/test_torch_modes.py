"""torch's default dtype is the whole process's: what needs no weights leaves it alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lora_lab as ll
from lora_lab._util.torch_modes import DefaultDtype
from lora_lab._util.transformers_private import build_from_config
from lora_lab.errors import ModelError
from lora_lab.models.load import load_outline, model_config
from lora_lab.models.needs import model_needs
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

CONFIGS: dict[str, Callable[[], Any]] = {
    "LlamaForCausalLM": lambda: transformers.LlamaConfig(num_hidden_layers=1),
    "T5ForConditionalGeneration": lambda: transformers.T5Config(num_layers=1),
    "MambaForCausalLM": lambda: transformers.MambaConfig(num_hidden_layers=1),
    "DebertaModel": lambda: transformers.DebertaConfig(num_hidden_layers=1),  # float32 biases
    "CLIPModel": lambda: transformers.CLIPConfig(),  # configs within it
}


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A folder whose config says float16."""
    tiny_llama(0).half().save_pretrained(tmp_path / "half")
    tiny_tokenizer().save_pretrained(tmp_path / "half")
    return tmp_path / "half"


@pytest.fixture
def set_dtypes(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What torch's default has been set to."""
    found: list[torch.dtype] = []
    monkeypatch.setattr(torch, "set_default_dtype", found.append)
    return found


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_model_on_meta_has_the_types_that_transformers_gives_it(
    name: str, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config = getattr(transformers, name), CONFIGS[name]()
    config.dtype = dtype
    with torch.device("meta"):
        theirs = kind._from_config(config)
    said, set_dtypes = config.to_dict(), []
    monkeypatch.setattr(torch, "set_default_dtype", set_dtypes.append)
    ours: Any = build_from_config(kind, config)
    assert set_dtypes == []
    assert [(n, p.dtype, p.shape) for n, p in ours.named_parameters()] == [
        (n, p.dtype, p.shape) for n, p in theirs.named_parameters()
    ]
    assert [(n, b.dtype) for n, b in ours.named_buffers()] == [
        (n, b.dtype) for n, b in theirs.named_buffers()
    ]
    assert all(tensor.is_meta for tensor in ours.parameters())
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert config.to_dict() == said, "the config that was given stays as it was"


def test_a_type_that_no_weights_have_gets_one_line() -> None:
    config = transformers.LlamaConfig(num_hidden_layers=1, architectures=["LlamaForCausalLM"])
    config.dtype = torch.int8
    with pytest.raises(ModelError, match=r"its dtype is torch\.int8, which weights cannot be"):
        ll.anatomy(config)


READS: dict[str, Callable[[Path], Any]] = {
    "anatomy of a config": lambda folder: ll.anatomy(model_config(folder)),
    "load_outline": load_outline,
    "model_needs": lambda folder: model_needs(str(folder)),
    "dry_run": lambda folder: ll.dry_run(
        str(folder), ll.LoraConfig(r=2), batch_size=1, sequence_length=8
    ),
    "budget": lambda folder: ll.budget(
        model_config(folder), ll.LoraConfig(r=2), batch_size=1, sequence_length=8
    ),
}


@pytest.mark.parametrize("name", READS)
def test_what_is_told_of_a_model_without_its_weights_sets_no_default(
    name: str, half: Path, set_dtypes: list[torch.dtype]
) -> None:
    READS[name](half)
    assert set_dtypes == []


def test_the_dtype_of_a_config_is_told(half: Path) -> None:
    assert ll.anatomy(model_config(half)).shape.dtype == "float16"
    assert load_outline(half).card.dtype == "float16"


def test_a_default_of_ones_own_is_this_threads_alone() -> None:
    inside, looked = threading.Event(), threading.Event()
    other: list[torch.dtype] = []

    def look() -> None:
        assert inside.wait(60)
        other.append(torch.zeros(2).dtype)
        looked.set()

    thread = threading.Thread(target=look)
    thread.start()
    with DefaultDtype(torch.float16):
        inside.set()
        assert looked.wait(60)
        made = torch.zeros(2), torch.ones(2), torch.tensor(0.5), torch.arange(0.0, 2), torch.eye(2)
        assert {tensor.dtype for tensor in made} == {torch.float16}
        assert torch.arange(3).dtype is torch.int64
        assert torch.tensor([1]).dtype is torch.int64
        assert torch.zeros(2, dtype=torch.float32).dtype is torch.float32
    thread.join(60)
    assert other == [torch.float32]
    assert torch.zeros(2).dtype is torch.float32
