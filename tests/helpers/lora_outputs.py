"""LoRA whose ΔW shows, on any tiny model, and what the model then answers."""

import torch
from torch import nn

import lora_lab as ll


def everything(**changes) -> ll.LoraConfig:
    # init False: B is random too, so that ΔW ≠ 0 and mistakes show.
    fields = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False}
    return ll.LoraConfig(**{**fields, **changes})


def outputs(model: nn.Module, batch) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    with torch.no_grad():
        result = model.eval()(**batch)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def stirred(adapter) -> None:
    """Move every trained number a little, so that nothing is at its start."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
