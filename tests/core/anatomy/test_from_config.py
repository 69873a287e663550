"""An anatomy from a config: two blocks built, the rest repeated; and every weight by its name."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from torch import nn

from lora_lab.anatomy import anatomy, from_config, model_config, reader
from lora_lab.errors import ModelError
from lora_lab.models import catalogue
from lora_lab.models import model_config as config_of
from tests.helpers.tiny_models import ARCHITECTURES, tiny

TYPES = {
    "bert": "BertConfig",
    "gpt2": "GPT2Config",
    "gpt_neox": "GPTNeoXConfig",
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "opt": "OPTConfig",
    "qwen2": "Qwen2Config",
    "roberta": "RobertaConfig",
}


@pytest.mark.parametrize("layers", [1, 2, 3, 12])
@pytest.mark.parametrize("kind", TYPES)
def test_repeating_a_block_gives_what_building_all_of_them_gives(kind: str, layers: int) -> None:
    config = getattr(transformers, TYPES[kind])(num_hidden_layers=layers)
    before = config.to_dict()
    assert from_config.read_config(config) == reader.read(model_config.build_on_meta(config))
    assert config.to_dict() == before


def test_every_repeated_type_is_tested() -> None:
    assert set(TYPES) == from_config._ALIKE


@pytest.mark.parametrize("name", catalogue())
def test_the_catalogues_models(name: str) -> None:
    config = config_of(name)
    assert anatomy(config) == reader.read(model_config.build_on_meta(config))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_the_models_parameters(name: str) -> None:
    model = tiny(name)
    found = anatomy(model)
    assert {w.name: w.shape for w in found.weights} == {
        path: tuple(parameter.shape) for path, parameter in model.named_parameters()
    }
    assert sum(w.size for w in found.weights) == found.parameters
    rows = {(row.stack, row.layer) for row in found.rows}
    assert {(w.stack, w.layer) for w in found.weights if w.layer is not None} == rows


def test_a_weight_knows_its_block_its_kind_and_the_head() -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    weights = {w.name: w for w in anatomy(transformers.BertForMaskedLM(config)).weights}
    norm = weights["bert.encoder.layer.1.output.LayerNorm.bias"]
    assert (norm.layer, norm.is_bias, norm.head, norm.shape) == (1, True, False, (8,))
    words = weights["bert.embeddings.word_embeddings.weight"]
    assert (words.layer, words.is_bias, words.head) == (None, False, False)
    assert weights["cls.predictions.transform.dense.bias"].head


def test_without_a_backbone_nothing_is_a_head() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert not any(w.head for w in anatomy(model).weights)


def test_sizes_that_do_not_fit_are_one_line() -> None:
    config = transformers.OPTConfig(hidden_size=64, num_attention_heads=5)
    with pytest.raises(ModelError, match="cannot build a OPTForCausalLM of this config: embed_dim"):
        anatomy(config)
