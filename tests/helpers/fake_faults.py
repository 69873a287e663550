"""Faults that only a GPU would show, planted to see that the fake device shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.methods import api
from lora_lab.methods.lora.adapter import LoraAdapter
from lora_lab.training import saved_state
from lora_lab.training.step_checks import StepChecks
from tests.helpers.fake_device import DEVICES

# What is added to the loss of a pass, made of a factor: an operation within the step.
_IN_THE_PASS: dict[str, Callable[[nn.Parameter], Tensor]] = {
    "tensors of two devices meet": lambda A: (A + torch.ones_like(A, device=DEVICES[1])).sum(),
    "a tensor from the CPU meets": lambda A: (A + torch.ones_like(A, device="cpu")).sum(),
    "a tensor made on the CPU": lambda A: A.sum() + torch.zeros(()),
    "a number made on the CPU": lambda A: A.sum() * torch.tensor(0.5),
    "a number read": lambda A: A.sum() * float(A.detach().sum()),
    "a number brought": lambda A: A.sum() * torch.tensor(0.5, device=A.device),
    "a tensor read": lambda A: A.sum() * A.detach().cpu().numel(),
    "a tensor brought": lambda A: A.sum() + torch.empty_like(A).copy_(torch.zeros(A.shape)).sum(),
    "a mask for an index": lambda A: A[A > 0].sum(),
    "places counted": lambda A: A.sum() * A.detach().nonzero().shape[0],
}


def plant(name: str) -> None:
    """Plant a fault in this process, for good."""
    if name in _IN_THE_PASS:
        make = _IN_THE_PASS[name]
        LoraAdapter.penalty = lambda self: make(next(self.parameters()))
        return
    changes: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        "a factor on another device": (LoraAdapter, "insert", _elsewhere),
        "a second transfer of the numbers": (StepChecks, "before_update", _twice),
        "a checkpoint left on the device": (saved_state, "checkpoint_state", _left),
        "weights not put back": (api, "_restore", lambda *_: None),
    }
    owner, attribute, change = changes[name]
    before = getattr(owner, attribute)
    setattr(owner, attribute, lambda *given, **more: change(before, *given, **more))


def _elsewhere(insert: Any, adapter: LoraAdapter, active: Any) -> None:
    factor = next(adapter.parameters())
    factor.data = factor.data.to(DEVICES[1])
    insert(adapter, active)


def _twice(before_update: Any, checks: Any, step: int, losses: Tensor, *more: Any) -> Any:
    before_update(checks, step, losses, *more)
    return before_update(checks, step, losses, *more)


def _left(checkpoint_state: Any, worker: Any) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint_state(worker)
    return state | {"adapter": saved_state.exact_state(worker.adapter)}
