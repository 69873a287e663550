"""A model's own modules are found among those that adapters have added, at the cost of its own."""

from __future__ import annotations

from collections import Counter

import pytest
from torch import nn

import lora_lab as ll
from lora_lab.methods import own_tensors
from tests.helpers.tiny_text import tiny_llama

LORA = ll.LoraConfig(r=2, target_modules="all-linear")
ADDING = {
    "LoRA": LORA,
    "a whole module": LORA.replace(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "Adapter^H": ll.BottleneckConfig("H", r=2),
    "tokens": ll.PrefixEmbedConfig(2, 1),
}


@pytest.mark.parametrize("config", ADDING.values(), ids=ADDING)
def test_what_adapters_add_is_passed_by(config):
    model = tiny_llama(0)
    before = dict(model.named_modules())
    ll.attach(model, config)
    assert dict(own_tensors.own_modules(model)) == before


def test_a_child_of_the_model_s_own_may_be_called_lora():
    model = nn.Module()
    model.lora = nn.Sequential(nn.Linear(2, 2))
    assert [path for path, _ in own_tensors.own_modules(model)] == ["", "lora", "lora.0"]


def test_one_more_adapter_looks_at_as_many_modules_as_the_first(monkeypatch):
    seen: Counter[int] = Counter()
    real = own_tensors.modules_within

    def counted(*given, **named):
        for found in real(*given, **named):
            seen[number] += 1
            yield found

    monkeypatch.setattr(own_tensors, "modules_within", counted)
    model = tiny_llama(0)
    for number in range(6):
        ll.attach(model, LORA, name=f"number-{number}")
    assert seen[0] > 0
    assert {seen[n] for n in range(6)} == {seen[0]}
