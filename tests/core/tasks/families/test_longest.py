"""The longest example of a task, and forecasts of models whose two sides differ in length."""

from __future__ import annotations

from typing import Any

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.tasks.families.api import longest_and_labels, longest_example
from lora_lab.training.data import RunData
from tests.helpers.tiny_classes import tiny_classes, tiny_classifier
from tests.helpers.tiny_models import tiny
from tests.helpers.tiny_run import tiny_lm, tiny_task
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task

LORA = ll.LoraConfig(r=4, target_modules="all-linear")


def test_a_decoders_example_is_prompt_completion_and_the_end() -> None:
    lm, task = tiny_lm(), tiny_task()
    bytes_of = [
        len(task.prompt_text(e.prompt)) + len(e.completion) + 1 for e in task.train
    ]  # a token a byte
    assert longest_example(lm, task, 128) == (max(bytes_of), None)
    learned = max(len(e.completion) + 1 for e in task.train)
    assert longest_and_labels(lm, task, 128) == ((max(bytes_of), None), learned)


@pytest.mark.parametrize(("kind", "frame"), [("t5", 1), ("bart", 2)])
def test_the_two_sides_of_a_pair_are_measured_apart(kind: str, frame: int) -> None:
    lm, task = tiny_seq2seq(kind), uneven_task()
    found = longest_example(lm, task, 64)
    assert found.read == max(len(task.prompt_text(e.prompt)) for e in task.train) + frame
    assert found.written == max(len(e.completion) for e in task.train) + frame
    assert found.read != found.written
    assert longest_and_labels(lm, task, 64) == (found, found.written)


def test_a_text_with_a_class_is_measured_in_its_frame() -> None:
    lm, task = tiny_classifier(), tiny_classes()
    longest = max(len(e.text) for e in task.train)
    assert longest_and_labels(lm, task, 64) == ((longest + 2, None), None)


def test_a_run_forecasts_with_both_lengths() -> None:
    lm, task = tiny_seq2seq("t5"), uneven_task()
    training = ll.TrainingConfig(max_steps=16, max_length=64, eval_examples=0)
    data = RunData(lm, task, training, notes=[])
    examples = data.training_examples()  # all 64 of them
    expected = longest_example(lm, task, 64)
    assert data.longest(examples) == (*expected, expected.written)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_logits_and_blocks_cost_as_many_tokens_as_each_side_has(kind: str) -> None:
    model = tiny_seq2seq(kind).model
    settings = {"batch_size": 2, "sequence_length": 48}

    def activations(forecast: Any, config: Any, target: int | None) -> int:
        found = forecast(model, config, **settings, target_length=target)
        return getattr(found, "adapted", found).activations

    for config in (LORA, ll.BottleneckConfig("H", r=4)):
        for forecast in (ll.budget, ll.dry_run):
            same, short, alike = (activations(forecast, config, t) for t in (48, 8, None))
            assert same == alike
            # At the least the loss's three float32 copies of the logits are gone, and no more of
            # the encoder's than before.
            assert same - short >= 3 * 4 * 2 * 40 * 259
            assert short > 0


def test_the_lengths_are_named_in_the_settings() -> None:
    for forecast in (ll.budget, ll.dry_run):
        found = forecast(tiny("t5"), LORA, batch_size=2, sequence_length=9, target_length=5)
        assert "batch 2 × 9 tokens read, 5 written" in found.settings


@pytest.mark.parametrize("forecast", [ll.budget, ll.dry_run])
def test_a_length_that_cannot_be_is_refused(forecast: Any) -> None:
    with pytest.raises(ConfigError, match="target_length is for encoder-decoder models"):
        forecast(tiny("llama"), LORA, target_length=8)
    with pytest.raises(ConfigError, match="target_length is 0"):
        forecast(tiny("t5"), LORA, target_length=0)
