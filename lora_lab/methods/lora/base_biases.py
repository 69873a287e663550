"""Which of the base's own biases LoRA trains beside its factors: PEFT's `bias`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lora_lab.methods.modules_to_save import ModulesToSave
from lora_lab.methods.own_tensors import own_tensors
from lora_lab.methods.own_values import check_own


def trained_biases(
    model: nn.Module, which: str, targets: Mapping[str, nn.Module], saved: ModulesToSave
) -> dict[str, nn.Parameter]:
    """Return {name in the model's state dict: bias}, a tied one once.

    Args:
        model: the base.
        which: `LoraConfig.bias`: "all": whatever is called "bias", also of norms, convolutions and
            heads; "lora_only": those of the adapted layers; "none".
        targets: the adapted layers, by their paths.
        saved: what is trained whole, with its biases in it.

    Raises:
        AdapterError: one of them cannot be trained.
    """
    if which == "none":
        return {}
    adapted = {id(getattr(module, "bias", None)) for module in targets.values()}
    whole = {id(tensor) for key, tensor in own_tensors(model) if saved.covers(key)}
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, tensor in own_tensors(model):
        wanted = which == "all" or id(tensor) in adapted
        if f".{name}".endswith(".bias") and isinstance(tensor, nn.Parameter) and wanted:
            found.setdefault(id(tensor), (name, tensor))
    own = dict(pair for key, pair in found.items() if key not in whole)
    check_own(model, own)
    return own
