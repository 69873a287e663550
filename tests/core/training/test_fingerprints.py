"""The fingerprints of the base and the data that a run is of."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.fingerprints import (
    base_fingerprint,
    body_fingerprint,
    data_fingerprint,
    task_fingerprints,
)
from tests.helpers.quantized_layers import KINDS, quantize
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
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


def test_a_task_is_told_by_its_rows_held_out_rows_and_classes_and_not_by_its_name():
    task = tiny_classes()
    now = task_fingerprints(task)
    assert task_fingerprints(dataclasses.replace(task, name="other")) == now
    changed = {
        "data": dataclasses.replace(task, train=task.train[1:]),
        "held_out": dataclasses.replace(task, validation=task.validation[1:]),
        "task": dataclasses.replace(task, labels=task.labels[::-1]),
    }
    for key, other in changed.items():
        found = task_fingerprints(other)
        assert [k for k in found if found[k] != now[k]] == [key]


def test_a_head_that_starts_at_random_makes_no_other_body():
    models = [tiny_classifier("bert").model for _ in range(3)]
    models[1].classifier.weight.data.normal_()
    models[2].bert.encoder.layer[1].output.dense.weight.data[0, 0] += 1
    one, other_head, other_body = map(body_fingerprint, models)
    assert one == other_head != other_body
    assert base_fingerprint(models[0]) != base_fingerprint(models[1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("GPTQ", "AWQ")])
def test_a_packed_base_is_known_by_what_is_packed(kind: str) -> None:
    def packed(factor: float) -> nn.Module:
        model = tiny("llama")
        (layer,) = (m for p, m in model.named_modules() if p.endswith("1.mlp.down_proj"))
        layer.weight.data[::2] *= factor
        return quantize(model, KINDS[kind])

    assert base_fingerprint(packed(1.0)) == base_fingerprint(packed(1.0))
    assert base_fingerprint(packed(1.0)) != base_fingerprint(packed(-1.0))
