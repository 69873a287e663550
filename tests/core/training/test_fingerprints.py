"""The fingerprint of the data that a run is of."""

from __future__ import annotations

from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.fingerprints import data_fingerprint


def test_examples_that_say_something_else_have_another_fingerprint():
    def task(*words: str) -> GenerationTask:
        return GenerationTask("t", True, [Example(word, word, (word,)) for word in words], [])

    assert data_fingerprint(task("a", "b")) == data_fingerprint(task("a", "b"))
    assert data_fingerprint(task("a", "b")) != data_fingerprint(task("b", "a"))
    assert data_fingerprint(task("a", "b")) != data_fingerprint(task("a"))
