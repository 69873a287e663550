"""The fingerprints of the base and the data that a run is of."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.fingerprints import base_fingerprint, data_fingerprint
from tests.helpers.quantized_layers import KINDS, quantize
from tests.helpers.tiny_models import tiny


def test_examples_that_say_something_else_have_another_fingerprint():
    def task(*words: str) -> GenerationTask:
        return GenerationTask("t", True, [Example(word, word, (word,)) for word in words], [])

    assert data_fingerprint(task("a", "b")) == data_fingerprint(task("a", "b"))
    assert data_fingerprint(task("a", "b")) != data_fingerprint(task("b", "a"))
    assert data_fingerprint(task("a", "b")) != data_fingerprint(task("a"))


def test_prompts_that_are_framed_otherwise_have_another_fingerprint():
    task = GenerationTask("t", True, [Example("a", "b", ("b",))], [])
    found = {data_fingerprint(dataclasses.replace(task, template=t)) for t in ("plain", "chat")}
    assert len(found | {data_fingerprint(task)}) == 3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("GPTQ", "AWQ")])
def test_a_packed_base_is_known_by_what_is_packed(kind: str) -> None:
    def packed(factor: float) -> nn.Module:
        model = tiny("llama")
        (layer,) = (m for p, m in model.named_modules() if p.endswith("1.mlp.down_proj"))
        layer.weight.data[::2] *= factor
        return quantize(model, KINDS[kind])

    assert base_fingerprint(packed(1.0)) == base_fingerprint(packed(1.0))
    assert base_fingerprint(packed(1.0)) != base_fingerprint(packed(-1.0))
