"""The shape of a model: heads, widths, tied embeddings, counts as its makers publish them."""

from __future__ import annotations

import contextlib

import pytest
import transformers

from lora_lab.anatomy import anatomy
from tests.helpers.site_shapes import shape_of
from tests.helpers.tiny_architectures import tiny_architecture
from tests.helpers.tiny_models import ARCHITECTURES, MORE_FUSED, tiny, tiny_config, tiny_inputs

# name: (heads, key-value heads, head_dim) as the tiny configs say them
HEADS = {
    "llama": (4, 2, 8),
    "qwen3": (4, 2, 16),
    "gemma": (4, 1, 16),
    "gemma3": (4, 2, 16),
    "phi3": (4, 2, 8),
    "gpt2": (4, 4, 8),
    "gpt-neox": (4, 4, 8),
    "falcon-grouped": (4, 2, 8),
    "falcon-multi-query": (4, 1, 8),
    "falcon-interleaved": (4, 4, 8),
    "opt": (4, 4, 8),
    "distilbert": (4, 4, 8),
    "t5": (4, 4, 12),
    "vit": (4, 4, 8),
}


@pytest.mark.parametrize("name", HEADS)
def test_grouped_queries_and_wide_heads(name: str) -> None:
    heads, kv_heads, head_dim = HEADS[name]
    found = anatomy(tiny(name))
    row = found.rows[-1]
    assert shape_of(found.cell(row, "q")) == (heads * head_dim, 32)
    assert shape_of(found.cell(row, "k")) == (kv_heads * head_dim, 32)
    assert shape_of(found.cell(row, "v")) == (kv_heads * head_dim, 32)
    assert shape_of(found.cell(row, "o")) == (32, heads * head_dim)
    width = 48 if "falcon" not in name and "gpt2" not in name else 4 * 32
    assert shape_of(found.cell(row, "up")) == (width, 32)
    assert shape_of(found.cell(row, "down")) == (32, width)
    shape = found.shape
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim) == (heads, kv_heads, head_dim)
    assert (shape.hidden_size, shape.intermediate_size, shape.dtype_bytes) == (32, width, 4)
    assert shape.num_layers == (5 if name == "t5" else 2)
    assert shape.vocab_size == (None if name == "vit" else 96)
    assert shape.max_positions == (None if name in ("t5", "vit") else 64)


@pytest.mark.parametrize("name", [n for n in [*ARCHITECTURES, *MORE_FUSED] if n != "vit"])
def test_a_model_fails_beyond_its_table_of_positions_and_nowhere_else(name: str) -> None:
    model = tiny(name)
    found = anatomy(model).shape
    limit = found.position_limit
    assert limit in (None, found.max_positions)
    model(**tiny_inputs(model, length=limit or 64))
    longer = tiny_inputs(model, length=(limit or 64) + 1)
    with contextlib.nullcontext() if limit is None else pytest.raises((IndexError, RuntimeError)):
        model(**longer)


def test_a_number_in_the_config_is_no_limit_where_places_are_distances() -> None:
    assert anatomy(tiny("t5", n_positions=512)).shape.max_positions is None
    assert anatomy(tiny_architecture("mpnet")).shape.position_limit == 62  # a table besides
    assert anatomy(tiny_architecture("xlnet")).shape.max_positions is None  # −1 in its config


@pytest.mark.parametrize(("name", "tied"), [("llama", False), ("smollm", True), ("gpt2", True)])
def test_tied_embeddings(name: str, tied: bool) -> None:
    assert anatomy(tiny_config(name)).shape.tied_embeddings is tied


# Sizes and counts as the models' makers publish them.
PUBLISHED = {
    "smollm2-135m": (
        "LlamaConfig",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
        134_515_008,
        210,
    ),
    "llama-2-7b": ("LlamaConfig", {"intermediate_size": 11008}, 6_738_415_616, 224),
    "gpt2": ("GPT2Config", {}, 124_439_808, 72),
    "gpt2-medium": (
        "GPT2Config",
        {"n_embd": 1024, "n_layer": 24, "n_head": 16},
        354_823_168,
        144,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_from_a_config_without_architectures(name: str) -> None:
    kind, sizes, parameters, sites = PUBLISHED[name]
    found = anatomy(getattr(transformers, kind)(**sizes))
    assert found.parameters == parameters
    assert len(found.grid_sites) == len(found.sites) == sites


@pytest.mark.parametrize(("name", "head"), [("bert", "decoder"), ("t5", "lm_head"), ("vit", "")])
def test_a_config_without_architectures_gives_the_language_model(name: str, head: str) -> None:
    config = tiny_config(name)
    config.architectures = None
    found = anatomy(config)
    assert len(found.rows) == (5 if name == "t5" else 2)
    assert found.shape.tied_embeddings == bool(head)
    assert not any(site.module.endswith("lm_head") for site in found.sites)


def test_the_config_of_a_speech_model_gives_both_its_stacks() -> None:
    config = transformers.WhisperConfig(
        vocab_size=64,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        pad_token_id=0,
    )
    assert [row.label for row in anatomy(config).rows] == ["enc 0", "dec 0", "dec 1"]
