"""One optimizer step: what it came to, or why it cannot be taken."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab.errors import RunError


class NotFiniteError(RunError):
    """A loss or gradient is NaN or infinite; the optimizer was not given it.

    Attributes:
        adapter_suspect: the adapter as it stands gave it, so an older one is the last good one;
            False: its loss was finite, only the way on is barred.
    """

    def __init__(self, message: str, adapter_suspect: bool) -> None:
        super().__init__(message)
        self.adapter_suspect = adapter_suspect


class DeadAdapterError(RunError):
    """Training does not reach some of the adapter's sites."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, done."""

    number: int  # from 1
    loss: float  # mean over the step's completion tokens, or its texts with classes; nats
    learning_rate: float  # that the step was taken with
    tokens: int  # completion tokens of the step (or texts), those that the loss is the mean of
