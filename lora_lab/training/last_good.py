"""The adapter to fall back to when a training goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lora_lab.methods.base import Adapter


class LastGood:
    """The newest copy of an adapter, on the CPU, that is known to give a finite loss."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._candidate: tuple[int, Sequence[Tensor]] = (0, [])
        self._good: tuple[int, Sequence[Tensor]] = (0, [])

    def keep(self, step: int) -> None:
        """Copy the adapter as it is after so many steps; `confirm` says that it was good."""
        self._candidate = (step, self._adapter.snapshot())

    def confirm(self) -> None:
        """Trust the latest copy: the next step's loss was finite, and not far up."""
        self._good = self._candidate

    def restore(self) -> int:
        """Put the adapter back to the newest good copy; return the step that it is of."""
        step, copy = self._good
        self._adapter.restore(copy)
        return step
