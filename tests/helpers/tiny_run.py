"""A tiny language model with a task that its adapter learns in a second or two."""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from typing import Any

import torch

from lora_lab.configs import LoraConfig
from lora_lab.models import LoadedModel
from lora_lab.tasks import Example, GenerationTask
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

CONFIG = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def tiny_lm(seed: int = 0) -> LoadedModel:
    """A random Llama of 2 layers, 32 wide."""
    return LoadedModel.given(tiny_llama(seed), tiny_tokenizer(), "tiny-llama")


def tiny_task(training: int = 64, held_out: int = 4) -> GenerationTask:
    """Four letters in, the same letters and a full stop out: five words to BLEU."""
    words = [
        " ".join(string.ascii_lowercase[(i * k + 3 * k) % 26] for k in range(1, 5))
        for i in range(training + held_out)
    ]
    examples = [Example(f"{word} >", f"{word} .", (f"{word} .",)) for word in words]
    return GenerationTask("letters", True, examples[:training], examples[training:])


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for a condition, but not for ever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 25).unsqueeze(0)).logits
