"""Out of memory on a real GPU: all of it is given back, and what is proposed then fits."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from lora_lab.models import LoadedModel
from lora_lab.tasks import Example, GenerationTask
from lora_lab.training.gpu_memory import gpu_memory
from tests.helpers.spent_memory import ordeal
from tests.helpers.tiny_text import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Gpu:
    """The GPU; what is taken of it is held as one tensor."""

    slack = 2**20  # each tensor is rounded up to 512 bytes

    def __init__(self) -> None:
        self.taken = 0
        self._hog: torch.Tensor | None = None

    def allocated(self) -> int:
        gc.collect()
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        return torch.cuda.memory_allocated()

    def take_all_but(self, free: int) -> None:
        torch.cuda.empty_cache()
        memory = gpu_memory(torch.device("cuda", torch.cuda.current_device()))
        assert memory is not None
        before = torch.cuda.memory_allocated()
        self._hog = torch.empty(memory.free - free, dtype=torch.uint8, device="cuda")
        self.taken = torch.cuda.memory_allocated() - before


def test_memory_is_freed_and_the_proposed_batch_fits(tmp_path: Path) -> None:
    # Wide and long enough that a batch is hundreds of MB: an allocator's odds and ends are few.
    model = tiny_llama(
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    examples = [Example(f"{i:03} " * 50, f"{i:03} " * 10, (str(i),)) for i in range(48)]
    task = GenerationTask("numbers", True, examples, examples[:2])
    lm = LoadedModel.given(model.to("cuda"), tiny_tokenizer(), "wide-llama")
    ordeal(lm, task, tmp_path, Gpu())
