"""accelerate's hooks: where a hooked module runs, and what is kept from it."""

from __future__ import annotations

import torch
from accelerate.hooks import (
    AlignDevicesHook,
    SequentialHook,
    add_hook_to_module,
    remove_hook_from_module,
)
from torch import nn

from lora_lab._util import accelerate_private


def test_where_a_hooked_module_runs_and_what_is_kept_from_it() -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight.detach().clone()
    assert accelerate_private.execution_device(layer) is None
    assert accelerate_private.offloaded(layer, "weight") is None
    add_hook_to_module(layer, SequentialHook(AlignDevicesHook("cpu", offload=True)))
    assert layer.weight.is_meta
    assert len(accelerate_private.hooks_of(layer)) == 1
    assert accelerate_private.execution_device(layer) == torch.device("cpu")
    assert torch.equal(accelerate_private.offloaded(layer, "weight"), weight)
    assert not accelerate_private.loads_submodules(layer)
    assert accelerate_private.is_offloaded(layer)
    bare = nn.Linear(2, 2)
    assert accelerate_private.hooked_forward(bare) is None
    add_hook_to_module(bare, AlignDevicesHook("cpu"))
    assert not accelerate_private.is_offloaded(bare)
    assert accelerate_private.hooked_forward(bare) == nn.Linear(2, 2).forward.__func__.__get__(bare)
    accelerate_private.hook_forward(bare, torch.neg)
    assert torch.equal(bare(weight), -weight)
    accelerate_private.hook_forward(bare, None)
    remove_hook_from_module(bare)
    assert torch.equal(bare(weight), nn.functional.linear(weight, bare.weight, bare.bias))
    block = nn.Sequential(nn.Linear(2, 2))
    add_hook_to_module(block, AlignDevicesHook("cpu", offload=True, place_submodules=True))
    assert accelerate_private.loads_submodules(block)
