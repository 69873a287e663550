"""What packed layers count as: the numbers of the model unpacked, and the bytes that are held."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lora_lab as ll
from lora_lab.budget.meter import Meter
from lora_lab.models import LoadedModel
from tests.helpers.quantized_layers import KINDS, Linear4bit, quantize
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

# An int8 a number, and so many float32 a row.
ROW = {"torchao": 1, "quanto": 1, "GPTQ": 1, "AWQ": 1, "bitsandbytes, 8 bits": 1, "HQQ": 2}
OWN_BIAS = {"GPTQ", "AWQ", "HQQ"}  # theirs is a buffer, or a plain tensor


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_model_has_as_many_numbers_as_the_unpacked_one(kind: str, name: str) -> None:
    plain, model = tiny(name), quantize(tiny(name), KINDS[kind])
    whole, found = ll.anatomy(plain), ll.anatomy(model)
    assert found.parameters == whole.parameters == sum(p.numel() for p in plain.parameters())
    layers = {p: m for p, m in plain.named_modules() if type(m) is nn.Linear and "lm_head" not in p}
    numbers = sum(layer.weight.numel() for layer in layers.values())
    rows = sum(layer.out_features for layer in layers.values())
    assert found.packed == {p: (m.out_features, m.in_features) for p, m in layers.items()}
    size = numbers // 2 if "4 bits" in kind else numbers
    own = [m.bias.numel() for m in layers.values() if m.bias is not None and kind in OWN_BIAS]
    assert found.packed_bytes == size + 4 * rows * ROW.get(kind, 0) + 4 * sum(own)
    config = ll.LoraConfig(r=2, target_modules="all-linear")
    budget = ll.budget(model, config, dtype="float32")
    assert budget.parameters_total == whole.parameters
    learned = 4 * budget.parameters_trainable
    rest = whole.parameters - numbers - sum(own)
    assert budget.adapted.weights == 4 * rest + found.packed_bytes + learned
    buffers = sum(b.nbytes for name, b in model.named_buffers() if "inv_freq" in name)
    assert Meter(model).reading().weights == 4 * rest + found.packed_bytes + buffers
    # Which only an unpacked one could be; a bias that is no parameter nobody could train.
    if not own:
        assert budget.full == ll.budget(plain, config, dtype="float32").full


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_says_as_many(kind: str) -> None:
    model = quantize(tiny_llama(), KINDS[kind])
    card = LoadedModel.given(model, tiny_tokenizer(), "packed").card
    assert card.parameters == sum(p.numel() for p in tiny_llama().parameters())


def test_scales_that_stand_beside_a_parameter_are_memory_too() -> None:
    model = nn.Sequential(Linear4bit(nn.Linear(64, 32, bias=False)))
    nested = SimpleNamespace(absmax=torch.zeros(1), code=torch.zeros(256), state2=None)
    model[0].weight.quant_state = SimpleNamespace(
        absmax=torch.zeros(32, dtype=torch.uint8), code=torch.zeros(16), state2=nested, blocksize=64
    )
    size = 64 * 32 // 2 + 32 + 4 * (16 + 1 + 256)
    assert Meter(model).reading().weights == size
    assert ll.anatomy(nn.Sequential(model)).packed_bytes == size
