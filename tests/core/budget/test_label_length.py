"""Where only some tokens have a label, logits are made of them alone: forecast, dry run, a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_lab.budget import budget
from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import FullConfig, LoraConfig
from lora_lab.errors import ConfigError
from lora_lab.methods.api import attach
from lora_lab.methods.recompute_mlp import recomputed_mlps
from lora_lab.tasks.label_logits import label_logits
from tests.helpers.measured_step import LiveBytes, fused_adamw, gpt2, llama

BATCH, LENGTH, WORDS = 4, 64, 3000
Q_V = LoraConfig(r=4, target_modules=["q", "v"])


def measured(model: Any, labels: int) -> int:
    """Return the live bytes at the dearest moment of the second step."""
    optimizer = fused_adamw([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(0, WORDS, (BATCH, LENGTH))
    learned = ids.where(torch.arange(LENGTH) >= LENGTH - labels, -100)
    for _ in range(2):
        optimizer.zero_grad()
        counter = LiveBytes()
        with counter:
            state = [list(values.values()) for values in optimizer.state.values()]
            counter.add(([*model.parameters()], state))
            with label_logits(model, BATCH * labels), recomputed_mlps(model):
                loss = model(input_ids=ids, labels=learned, use_cache=False).loss
            loss.backward()
            optimizer.step()
    return counter.peak


@pytest.mark.parametrize("labels", [8, 32])
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("config", [Q_V, FullConfig()], ids=["LoRA", "FT"])
def test_a_step(make: Any, config: Any, labels: int) -> None:
    torch.set_num_threads(1)
    model = make(WORDS).train()
    sizes = {"batch_size": BATCH, "sequence_length": LENGTH}
    found = dry_run(model, config, **sizes, label_length=labels).peak
    closed = budget(model, config, **sizes, label_length=labels).adapted.total
    upper = budget(model, config, **sizes).adapted.total
    if config is Q_V:
        attach(model, config)
    expected = measured(model, labels)
    assert found == pytest.approx(expected, rel=0.001)
    assert closed == pytest.approx(expected, rel=0.03)
    assert upper > 1.1 * closed  # each token with a label: a tenth more, and it is no more so


def test_it_is_a_count() -> None:
    with pytest.raises(ConfigError, match="label_length is 0"):
        budget(llama(), Q_V, label_length=0)
    sizes = {"batch_size": BATCH, "sequence_length": LENGTH}
    every = budget(llama(), Q_V, **sizes)
    assert budget(llama(), Q_V, **sizes, label_length=LENGTH) == every
