"""The workbench on encoder-decoder models: priced, trained and tried."""

from __future__ import annotations

import pytest

import lora_lab as ll
from lora_lab.training.snapshot import RunState
from lora_lab_widgets import Workbench
from tests.helpers.tiny_seq2seq import tiny_seq2seq, uneven_task

METHODS = {
    "LoRA": ll.LoraConfig(r=2, target_modules=["q", "v"]),
    "Adapter^H": ll.BottleneckConfig("H", r=2),
    "PreEmbed": ll.PrefixEmbedConfig(prefix_length=2),
    "FT": ll.FullConfig(),
}


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_a_method_is_priced_trained_and_tried(tmp_path, kind, config):
    bench = Workbench(
        tiny_seq2seq(kind),
        task=uneven_task(),
        config=config,
        output_dir=tmp_path,
        max_steps=2,
        max_length=32,
        per_device_train_batch_size=2,
        eval_examples=0,
        save_steps=0,
    )
    assert "trainable" in bench.fallback_html()
    run = bench.start()
    run.wait(60)
    assert run.state is RunState.DONE, run.snapshot.failure
    base, adapted = bench.session.answer("a 2", 4)
    assert isinstance(base, str)
    assert isinstance(adapted, str)
