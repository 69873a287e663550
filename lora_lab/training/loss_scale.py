"""A loss scale, without which gradients vanish in float16; its rule is torch.amp.GradScaler's.

float16 has no number below 6e-8, and the gradient of a mean over many tokens is full of smaller
ones. So the loss is multiplied before the backward pass and the gradients divided after it. Where
they overflow, the step is left out and the scale halved; after many steps without, it is doubled.

The scale is a number of the host's: a step waits for the device once anyway, for its loss and the
norm of its gradients, and the norm tells of an overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_lab._util.dtypes import dtype_name, main_dtype
from lora_lab._util.format import format_bytes
from lora_lab._util.torch_private import gradient_dtypes, multiply_
from lora_lab.methods.base import Adapter
from lora_lab.methods.masters import half_parameters
from lora_lab.training.step import FLOAT16_NOTE

# torch.amp.GradScaler's arguments, as they are by default.
_START = 2.0**16
_GROWTH = 2.0
_BACKOFF = 0.5
_INTERVAL = 2000  # steps without an overflow between two growths
# GradScaler has no least one, and its docs say: "If the scale falls below 1 … something is likely
# wrong." What overflows at 1 does so without a scale.
_LEAST = 1.0
_LARGEST = torch.finfo(torch.float32).max


class LossScale:
    """The scale of one training.

    Attributes:
        value: what the loss is multiplied with; a power of two.
        skipped: steps that were left out.
    """

    def __init__(self) -> None:
        self.value = _START
        self.skipped = 0
        self._good_steps = 0

    @property
    def may_fall(self) -> bool:
        """Whether a smaller one may help against an overflow."""
        return self.value > _LEAST

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by it, in place."""
        if gradients:
            multiply_(gradients, 1 / self.value)

    def update(self, finite: bool) -> None:
        """Take note of a step.

        Args:
            finite: whether its gradients were, so that it was taken.
        """
        if not finite:
            self.value *= _BACKOFF
            self.skipped += 1
            self._good_steps = 0
            return
        self._good_steps += 1
        if self._good_steps == _INTERVAL:
            self.value = grown if (grown := self.value * _GROWTH) <= _LARGEST else self.value
            self._good_steps = 0

    def state(self) -> dict[str, float]:
        """Return what `load_state` takes, under GradScaler's names."""
        return {
            "scale": self.value,
            "_growth_tracker": self._good_steps,
            "skipped": self.skipped,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.value = float(state["scale"])
        self._good_steps = int(state["_growth_tracker"])
        self.skipped = int(state["skipped"])


def computes_in_float16(model: nn.Module) -> bool:
    """Whether gradients pass through float16: weights, or what quantized layers compute in."""
    held = (*model.parameters(), *model.buffers())
    if any(tensor.dtype == torch.float16 for tensor in held):
        return True
    # bitsandbytes' Linear4bit casts what it reads; its other weights may be float32.
    return any(getattr(m, "compute_dtype", None) == torch.float16 for m in model.modules())


def passes_float16(loss: Tensor) -> bool:
    """Whether gradients of a loss will pass through float16, whatever the weights are of.

    Such is a model whose own forward pass is under autocast, as `Accelerator.prepare` leaves it.
    """
    return torch.float16 in gradient_dtypes(loss)


def precision_notes(model: nn.Module, adapter: Adapter) -> list[str]:
    """Return what a run says of its model's half precision before it trains."""
    notes = []
    if computes_in_float16(model):
        notes.append(FLOAT16_NOTE)
    if half := half_parameters(adapter.parameters()):
        dtype = dtype_name(half[0].dtype)
        numbers = sum(parameter.numel() for parameter in half)
        notes.append(
            f"{numbers:,} of the trained numbers are {dtype} in the model: they are trained as "
            f"float32 masters ({format_bytes(4 * numbers)} more) and rounded after every step"
        )
    computed = main_dtype(p for p in model.parameters() if not p.requires_grad)
    starts = any(getattr(site, "initial", None) is not None for site in adapter.sites.values())
    if starts and computed in (torch.float16, torch.bfloat16):
        notes.append(
            f"the adapter starts from W₀, and ΔW = s(BA − B₀A₀): in {dtype_name(computed)} both "
            f"products are rounded to 1/{2 / torch.finfo(computed).eps:.0f} of themselves, not of "
            "their difference, in which small steps show late; load the base in float32 where "
            "that matters"
        )
    return notes


def skipped_notes(skipped: int, steps: int) -> list[str]:
    """Return what a run says of skipped steps at its end."""
    if not skipped:
        return []
    return [
        f"{skipped} of {steps} steps were skipped: their gradients overflowed float16 at the loss "
        "scale of that moment, which was halved"
    ]
