"""The catalogue: sizes as published, and what a size without weights says."""

from __future__ import annotations

import pytest
import torch

from lora_lab.errors import ModelError
from lora_lab.models import (
    catalogue,
    load_model,
    model_class,
    model_config,
    places,
)
from lora_lab.models.entries import CATALOGUE


def _meta_parameters(name: str) -> int:
    config = model_config(name)
    with torch.device("meta"):
        model = model_class(config)._from_config(config)
        model.tie_weights()  # transformers 5.0 ties none on the meta device
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Published checkpoints: what their safetensors hold, tied weights once.
        ("smollm2-135m", 134_515_008),
        ("minilm-l6", 22_713_216),
        # 2,048 embeddings of 192, tied; 4 blocks of q, o, k and v, three of the MLP, two norms.
        ("mini-llama", 2048 * 192 + 4 * (2 * 192**2 + 2 * 192 * 64 + 3 * 192 * 512 + 384) + 192),
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


@pytest.mark.parametrize(
    "name", [n for n, own in CATALOGUE.items() if not (own.wheel or own.shipped)]
)
def test_a_size_without_weights_says_so(name, monkeypatch):
    monkeypatch.setattr(places, "hub_reachable", lambda: pytest.fail("asked the network"))
    with pytest.raises(ModelError, match=f"{name} is a size without weights.*ll.budget") as error:
        load_model(name)
    assert "\n" not in str(error.value)
