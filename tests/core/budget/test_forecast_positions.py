"""A forecast for sequences that the model has no positions for."""

from __future__ import annotations

from lora_lab.budget import budget
from lora_lab.configs import FullConfig, LoraConfig

Q_V = LoraConfig(r=4, target_modules=["q", "v"])


def test_a_sequence_longer_than_the_models_positions_is_told() -> None:
    line = "it cannot be trained so: 1025 tokens are more than its 1024 positions"
    assert budget("gpt2-medium", Q_V, sequence_length=1025).notes == (line,)
    assert line in str(budget("gpt2-medium", FullConfig(), sequence_length=1025))
    assert budget("gpt2-medium", Q_V, sequence_length=1024).notes == ()
    assert budget("smollm2-135m", Q_V, sequence_length=100_000).notes == ()
