"""The workbench on an encoder and a task of classes: priced, trained, tried, for any method."""

from __future__ import annotations

import time

import pytest

import lora_lab as ll
from lora_lab.errors import ConfigError
from lora_lab.runs import RunState
from lora_lab_widgets import Workbench
from tests.core.tiny_classes import tiny_classes, tiny_classifier

SETTINGS = {
    "max_steps": 4, "per_device_train_batch_size": 4, "max_length": 32, "eval_examples": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        ll.LoraConfig(r=4, target_modules=["q", "v"]),
        ll.BitFitConfig(),
        ll.BottleneckConfig("P", r=4),
        ll.PrefixEmbedConfig(3, 2),
    ],
    ids=lambda config: config.method,
)
def test_a_classifier_is_trained_and_answers_with_a_class(tmp_path, config):
    bench = Workbench(
        tiny_classifier("bert"), task=tiny_classes(), config=config, output_dir=tmp_path, **SETTINGS
    )
    assert bench.panel.tasks == ["halves"]
    run = bench.start()
    assert run.wait(120)
    assert run.state is RunState.DONE
    assert {"accuracy_before", "accuracy_after"} <= set(run.snapshot.metrics)
    base, adapted = bench._answer("abcabc", 8)
    for answer in (base, adapted):
        label, chance = answer.split(" ")
        assert label in ("early", "late")
        assert 50 <= int(chance.strip("(%)")) <= 100


def test_its_savings_are_those_of_its_longest_text():
    bench = Workbench(tiny_classifier("bert"), task=tiny_classes(), **SETTINGS)
    deadline = time.monotonic() + 60
    while not bench.savings.settings_text and time.monotonic() < deadline:
        time.sleep(0.05)
    # Nine letters of one token each, and two tokens around them.
    longest = max(len(example.text) for example in tiny_classes().train) + 2
    assert f"batch 4 × {longest} tokens" in bench.savings.settings_text


def test_a_model_without_a_head_is_told_when_it_starts(tmp_path):
    from tests.core.tiny_run import tiny_lm

    bench = Workbench(tiny_lm(), task=tiny_classes(), output_dir=tmp_path, **SETTINGS)
    with pytest.raises(ConfigError, match="has no classification head"):
        bench.start()
