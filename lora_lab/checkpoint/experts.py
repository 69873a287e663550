"""Routed experts in PEFT's files, where one tensor holds the weights of all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from lora_lab._util.torch_private import parameters_of
from lora_lab.methods.lora.config import LoraConfig

# PEFT (0.19 and later, with transformers 5) reads these names in `target_modules` as the experts of
# a file written with transformers 4, wherever in the model they stand.
_NAMES_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})


def is_taken_for_experts(model: nn.Module, path: str) -> bool:
    """Whether PEFT would look for a module's factors in the experts, which are one tensor each."""
    return path.rpartition(".")[2] in _NAMES_OF_EXPERTS and any(
        "gate_up_proj" in parameters_of(module) for module in model.modules()
    )


def named_as_parameters(model: nn.Module, paths: Iterable[str], config: LoraConfig) -> list[str]:
    """Return the modules that a file has to name as parameters ("…down_proj.weight").

    What is named so, PEFT leaves where it is. It has neither DoRA nor dropout on a parameter.
    """
    found = [path for path in paths if is_taken_for_experts(model, path)]
    if found and config.use_dora:
        warnings.warn(
            f"PEFT with transformers 5 takes {found[0]!r} for this model's routed experts, and has "
            "no DoRA under the other name that it knows; load this file with LoRA Lab, or write "
            "the whole model with export_merged",
            stacklevel=5,
        )
        return []
    if found and config.lora_dropout:
        warnings.warn(
            f"lora_dropout={config.lora_dropout} is written as 0: in a model with routed experts "
            f"PEFT has to be given {found[0]!r} as a parameter, and has no dropout on those",
            stacklevel=5,
        )
    return found
