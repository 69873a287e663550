"""An optimizer's state, taken from one machine to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from lora_lab.training.resume_state import check_alike, check_tensor

# How a step is computed, not what it is: this machine's choice, which a state dict would undo.
_KERNELS = ("fused", "foreach", "capturable")
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # AdamW's


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict into an optimizer, which goes on with its own kernels.

    torch takes over all options of a saved group, and with `fused` the place of every count of
    steps (`Optimizer._process_value_according_to_param_policy`): a checkpoint of a GPU would step
    with fused kernels on a CPU, and one of a CPU would never have them again.

    Args:
        optimizer: new, of as many parameters in as many groups.
        state: what its kin's `state_dict` returned, on any device.

    Raises:
        ValueError: it is of another one.
        KeyError, TypeError: it is none.
    """
    new = optimizer.state_dict()["param_groups"]
    check_alike(
        [_options(group) for group in state["param_groups"]], list(map(_options, new)), "groups"
    )
    pairs = zip(state["param_groups"], new, strict=True)
    groups = [own | saved | {key: own[key] for key in _KERNELS} for saved, own in pairs]
    check_alike([group["params"] for group in groups], [group["params"] for group in new], "params")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, moments in state["state"].items():
        if set(moments) != _MOMENTS:
            raise ValueError(f"parameter {number} has {', '.join(map(str, moments)) or 'nothing'}")
        for name, value in moments.items():
            shape = torch.Size() if name == "step" else parameters[number].shape
            check_tensor(value, shape, f"{name} of parameter {number}")
    optimizer.load_state_dict({**state, "param_groups": groups})


def load_scheduler(scheduler: LambdaLR, state: Mapping[str, Any]) -> None:
    """Load a state dict into a scheduler, whose making has set the rates to the first step's.

    Raises:
        ValueError: it is of another one.
        KeyError, TypeError: it is none.
    """
    check_alike(state, scheduler.state_dict(), "scheduler")
    scheduler.load_state_dict(dict(state))
    rates = scheduler.get_last_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's numbers, switches and pairs, which every machine has alike."""
    return {key: value for key, value in group.items() if key not in (*_KERNELS, "params")}
