"""An optimizer's state, taken from one machine to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# How a step is computed, not what it is: this machine's choice, which a state dict would undo.
_KERNELS = ("fused", "foreach", "capturable")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict into an optimizer, which goes on with its own kernels.

    torch takes over all options of a saved group, and with `fused` the place of every count of
    steps (`Optimizer._process_value_according_to_param_policy`): a checkpoint of a GPU would step
    with fused kernels on a CPU, and one of a CPU would never have them again.

    Args:
        optimizer: new, of as many parameters in as many groups.
        state: what its kin's `state_dict` returned, on any device.
    """
    pairs = zip(state["param_groups"], optimizer.param_groups, strict=True)
    groups = [saved | {key: own[key] for key in _KERNELS} for saved, own in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})
