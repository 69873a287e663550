"""A tiny model with several LoRA adapters."""

import torch

import lora_lab as ll
from tests.helpers.tiny_models import tiny


def several(name="llama", **changes):
    """A model with three adapters of different ranks, targets and scales."""
    model = tiny(name).double().eval()
    common = {"init_lora_weights": False, **changes}
    torch.manual_seed(0)
    for name, fields in {
        "a": {"r": 2, "lora_alpha": 4, "target_modules": ["q", "v"]},
        "b": {"r": 3, "target_modules": "all-linear"},
        "c": {"r": 1, "target_modules": ["v", "down"]},
    }.items():
        ll.attach(model, ll.LoraConfig(**{**fields, **common}), name)
    return model
