"""One optimizer step: what it came to, or why it cannot be taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_lab.errors import RunError

AUX_NOTE = (
    "the model asks for another loss beside the cross-entropy, such as its router's: it is trained "
    "with, is no part of the loss that is shown, and stands apart in metrics.jsonl (aux_loss)"
)

FLOAT16_NOTE = (
    "the model computes in float16: the loss is scaled, and a step whose gradients overflow is "
    "skipped and counted"
)

WHOLE_NOTE = "logits are computed for prompt and padding too, which takes time and memory: {}"


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
    aux_loss: float | None = None  # what is trained with beside `loss`: a router's; None: nothing
    skipped: bool = False  # gradients overflowed float16: nothing moved, see `LossScale`
    scaled: bool = False  # the loss was, for float16
    whole_logits: str = ""  # why the logits of prompt and padding were computed too

    @property
    def notes(self) -> list[str]:
        """What a run says that takes such steps."""
        said = {AUX_NOTE: self.aux_loss is not None, FLOAT16_NOTE: self.scaled}
        notes = [note for note, true in said.items() if true]
        return [*notes, WHOLE_NOTE.format(self.whole_logits)] if self.whole_logits else notes

    def row(self, seconds: float) -> dict[str, Any]:
        """Return its line in metrics.jsonl.

        Args:
            seconds: that the run had trained for after it.
        """
        beside: dict[str, Any] = {} if self.aux_loss is None else {"aux_loss": self.aux_loss}
        if self.skipped:
            beside["skipped"] = True
        return {
            "step": self.number,
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "tokens": self.tokens,
            "seconds": round(seconds, 4),
            **beside,
        }
