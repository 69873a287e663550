"""A tiny model with several LoRA adapters."""

import torch

import lora_lab as ll
from tests.helpers.tiny_models import tiny


def several(name="llama", **changes):
    """A model with three adapters of different ranks, targets and scales."""
    model = tiny(name).double().eval()
    common = {"init_lora_weights": False, **changes}
    torch.manual_seed(0)
    ll.attach(model, ll.LoraConfig(r=2, lora_alpha=4, target_modules=["q", "v"], **common), "a")
    ll.attach(model, ll.LoraConfig(r=3, target_modules="all-linear", **common), "b")
    ll.attach(model, ll.LoraConfig(r=1, target_modules=["v", "down"], **common), "c")
    return model
