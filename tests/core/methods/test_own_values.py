"""Own values change places all or none, wherever the memory ends."""

import pytest
import torch

import lora_lab as ll
from tests.helpers.spent_at import Spent
from tests.helpers.tiny_models import tiny

CONFIGS = {
    "FT": ll.FullConfig(),
    "LoRA with biases": ll.LoraConfig(r=2, bias="all"),
    "two of them": [ll.LoraConfig(r=2, bias="lora_only"), ll.BottleneckConfig("P", r=3)],
    "BitFit behind a LoRA": [ll.LoraConfig(r=2), ll.BitFitConfig()],
}


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora" not in name}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("nth", [1, 2, 3, 8, 30])
@pytest.mark.parametrize("to", [None, "tuned"])
def test_a_switch_that_the_memory_ends_in_is_made_whole(name, nth, to):
    model = tiny("gpt2")
    base = values(model)
    adapter = ll.attach(model, CONFIGS[name], "tuned")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.5)
    tuned = values(model)
    start = "tuned" if to is None else None
    ll.activate(model, start)
    learned = [value.clone() for value in adapter.state().values()]
    refused = False
    try:
        with Spent(nth):
            ll.activate(model, to)
    except torch.OutOfMemoryError:
        refused = True
    assert refused or nth > 2  # a switch has so many allocations at least
    here = ll.active(model)
    assert here == (start if refused else to)
    for key, value in values(model).items():
        assert torch.equal(value, (base if here is None else tuned)[key]), key
    for before, after in zip(learned, adapter.state().values(), strict=True):
        assert torch.equal(before, after)
    ll.activate(model, "tuned")
    assert all(torch.equal(value, tuned[key]) for key, value in values(model).items())
    ll.detach(model)
    assert all(torch.equal(value, base[key]) for key, value in values(model).items())
