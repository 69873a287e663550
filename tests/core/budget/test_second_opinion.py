"""The dry run beside torch's own count of a step's memory, `torch.distributed._tools.MemTracker`.

It knows storages by another way than ours: through hooks on modules, parameters and the optimizer.
Blocks that are recomputed are left out: the tracker's hooks hold on to their outputs, which nothing
else does (`test_dry_run_steps.py` counts those steps).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from lora_lab.budget.dry_run import dry_run
from lora_lab.configs import BottleneckConfig, LoraConfig
from tests.helpers.measured_step import BATCH, LENGTH, gpt2, label_loss, llama
from tests.helpers.small_steps import adapted

ALL = LoraConfig(r=4, target_modules="all-linear")
DORA = LoraConfig(r=4, target_modules=["q", "down"], use_dora=True)
STEP: dict[str, Any] = {"batch_size": BATCH, "sequence_length": LENGTH}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_llama(**more: Any) -> Any:
    return llama(64, layers=2, **more)  # two heads of q share one of k and v


def tracked(model: Any) -> int:
    """Return the most bytes of the second of two steps, as torch's tracker has it."""
    model.config.use_cache = False
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, fused=True)
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
    tracker = MemTracker()
    for frozen in model.parameters():  # which it would hook, and torch refuses
        if not frozen.requires_grad:
            hooks = RemovableHandle(OrderedDict())
            tracker._param_to_grad_hook_handles[frozen] = hooks, hooks
    tracker.track_external(model, optimizer)
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            optimizer.zero_grad()
            label_loss(model, input_ids=ids, labels=ids).backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return int(peak["Total"])


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (small_llama, None),
        (small_llama, ALL),
        (small_llama, DORA),
        (small_llama, BottleneckConfig("H", r=4)),
        (lambda: gpt2(64, layers=2), ALL),
        (lambda: gpt2(64, layers=2, dropout=0.1), None),
    ],
)
def test_a_step_on_the_cpu(make: Any, config: Any) -> None:
    expected = tracked(adapted(make(), config))
    found = dry_run(make(), config, **STEP)
    assert found.peak == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(None, torch.float32), (ALL, torch.float32), (ALL, torch.float16)],
)
def test_a_step_with_the_math_kernel(config: Any, dtype: torch.dtype) -> None:
    """Torch's own math kernel, which it takes on a T4 for heads that are shared."""
    model = adapted(small_llama().to(dtype), config)
    with sdpa_kernel(SDPBackend.MATH):
        expected = tracked(model)
    found = dry_run(small_llama(), config, dtype=dtype, device="T4", **STEP)
    assert found.notes
    assert found.peak == pytest.approx(expected, rel=0.01)
    fused = dry_run(small_llama(), config, dtype=dtype, **STEP)
    assert abs(fused.peak / expected - 1) > 0.05  # it would be seen
