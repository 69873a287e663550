"""The dry run and the meter on a CUDA device; skips without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lora_lab as ll
from lora_lab.budget.reading import differing_part
from tests.helpers.loop_memory import loop_reading, model_in

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LORA = ll.LoraConfig(r=8, target_modules="all-linear")
BATCH, LENGTH, WIDTH, LAYERS, VOCABULARY = 8, 256, 512, 6, 8192


def config(name: str) -> Any:
    if name == "llama":
        return transformers.LlamaConfig(
            architectures=["LlamaForCausalLM"],
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            num_key_value_heads=4,
            use_cache=False,
        )
    return transformers.GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=8,
        n_positions=LENGTH,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["full", "lora", "lora, checkpointing"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_dry_run_is_within_5_percent(
    name: str, shape: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    plan = ll.FullConfig() if shape == "full" else LORA
    checkpointing = "checkpointing" in shape
    torch.cuda.empty_cache()
    torch._C._cuda_clearCublasWorkspaces()
    reading = loop_reading(
        model_in(config(name), dtype, "cuda"),
        plan,
        tmp_path,
        batch=BATCH,
        length=LENGTH,
        gradient_checkpointing=checkpointing,
    )
    found = ll.dry_run(
        config(name),
        plan,
        batch_size=BATCH,
        sequence_length=LENGTH,
        dtype=dtype,
        gradient_checkpointing=checkpointing,
        cuda=True,
    )
    # The meter counts what the allocator handed out, not what it keeps for later.
    expected = found.device_peak - found.extras["cached blocks"]
    assert expected == pytest.approx(reading.peak, rel=0.05)
    assert (reading.gradients, reading.optimizer) == (found.gradients, found.optimizer)
    parts = (reading.weights, reading.gradients, reading.optimizer, reading.activations)
    assert sum(parts) == reading.peak
    assert differing_part(found.memory, reading, tolerance=0.5) == ""
