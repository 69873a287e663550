"""Ctrl-C while an adapter is put on a model: no part of it stays, to act beside the next one."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

import lora_lab as ll
from lora_lab.methods import api
from tests.helpers.lora_outputs import outputs
from tests.helpers.tiny_models import tiny, tiny_inputs

CONFIGS = {
    "LoRA": ll.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False),
    "Adapter^D": ll.BottleneckConfig("D", r=3),
    "LoRA+PE": [ll.LoraConfig(r=2, target_modules=["q"]), ll.PrefixEmbedConfig(2, 1)],
    "whole": ll.LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"]),
    "FT": ll.FullConfig(top_layers=1),
}


def cut(act: Callable[[], object], place: int) -> bool:
    """Call `act`, interrupted as its place-th call of a function begins; whether it came so far."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> None:
        nonlocal seen
        if "lora_lab" in frame.f_code.co_filename or "torch/nn" in frame.f_code.co_filename:
            if seen == place:
                sys.settrace(None)
                raise KeyboardInterrupt
            seen += 1

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def attached(model: Any, name: str) -> Any:
    """Attach with the same numbers every time, and give what was learned a meaning."""
    torch.manual_seed(0)
    adapter = ll.attach(model, CONFIGS[name])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    return adapter


@pytest.mark.filterwarnings("ignore:adapter 'default' was attached already")
@pytest.mark.parametrize("name", CONFIGS)
def test_attached_after_an_interrupt_anywhere_it_is_as_on_a_fresh_model(name):
    fresh = tiny("llama")
    batch = tiny_inputs(fresh)
    bare = outputs(fresh, batch)
    attached(fresh, name)
    expected = outputs(fresh, batch)
    assert not torch.equal(expected, bare)
    model = tiny("llama")
    for place in itertools.count(0, 53):
        adapter = api.build(model, CONFIGS[name], "default")
        came_so_far = cut(lambda adapter=adapter: api.put_on(model, adapter, True), place)
        attached(model, name)
        assert torch.equal(outputs(model, batch), expected), place
        ll.detach(model)
        assert torch.equal(outputs(model, batch), bare), place
        if not came_so_far:
            assert place > 0
            return
