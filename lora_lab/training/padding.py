"""How much of what a run computes is padding: batches are as long as their longest example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_lab.tasks.families.base import Lengths


@dataclass
class Padding:
    """Counts the tokens of training batches, and what they are padded to.

    Attributes:
        tokens: of the examples, of an encoder-decoder model those of both sides.
        padded: the same with the padding.
    """

    tokens: int = 0
    padded: int = 0

    def add(self, batch: Sequence[Lengths]) -> None:
        """Count a batch of examples of these lengths."""
        for side in zip(*((read, written or 0) for read, written in batch), strict=True):
            self.tokens += sum(side)
            self.padded += max(side) * len(side)

    @property
    def share(self) -> float | None:
        """The share of padding in all batches so far, from 0 to 1; None before the first."""
        return 1 - self.tokens / self.padded if self.padded else None

    def state(self) -> dict[str, int]:
        """Return what `load_state` takes."""
        return {"tokens": self.tokens, "padded": self.padded}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on counting from a checkpoint; those of earlier versions have nothing."""
        self.tokens, self.padded = state.get("tokens", 0), state.get("padded", 0)
