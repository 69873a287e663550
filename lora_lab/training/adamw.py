"""AdamW as a run takes its steps: in one kernel where that is right, seen by the meter."""

from __future__ import annotations

from typing import Any

import torch

from lora_lab._util.dense import is_dense
from lora_lab._util.hardware import hardware
from lora_lab.budget.meter import Meter


class AdamW(torch.optim.AdamW):
    """torch's AdamW, fused where the device has the kernel, as HF Trainer's default is.

    The kernel goes through memory from each tensor's first entry on and asks for no strides
    (aten/src/ATen/native/FusedAdam.cpp): views with gaps would be moved by their neighbors'
    gradients, without a word. With such a parameter all are moved one by one.

    Args:
        meter: looks at the steps.
        groups: of parameters, as torch takes them.
        **options: torch's.
    """

    def __init__(self, meter: Meter, groups: list[dict[str, Any]], **options: Any) -> None:
        dense = all(is_dense(each) for group in groups for each in group["params"])
        fused = dense and hardware(meter.device).fused_optimizer
        super().__init__(groups, fused=fused or None, **options)
        self._meter = meter

    @property
    def moves_all_or_nothing(self) -> bool:
        """Whether a step that fails has moved nothing: all moments are made before the kernel."""
        return bool(self.defaults["fused"])

    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        with self._meter.measure_update():
            return super().step(closure)
