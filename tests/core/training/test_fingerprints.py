"""The fingerprint of the data that a run is of."""

from __future__ import annotations

import dataclasses

from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.fingerprints import data_fingerprint


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
