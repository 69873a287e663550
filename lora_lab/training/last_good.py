"""The adapter to fall back to when a training goes wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from lora_lab._util.host_memory import HostRoom
from lora_lab.methods.attached import attached_adapters, require_adapters
from lora_lab.methods.base import Adapter
from lora_lab.methods.running_statistics import Values

_FIX = "train fewer of the weights, or take LoRA"
_Copy = tuple[int, Sequence[Tensor], Values]  # after so many steps


class LastGood:
    """The newest copy of an adapter, on the CPU, that is known to give a finite loss.

    Attributes:
        fell_back_to: the step whose copy took the place of a step that was half taken; None: that
            has not happened.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self._model = model
        self._adapter = adapter
        self._candidate: _Copy = (0, [], {})
        self._good: _Copy = (0, [], {})
        self.fell_back_to: int | None = None

    def keep(self, step: int) -> None:
        """Copy the adapter as it is after so many steps; `confirm` says that it was good.

        Raises:
            AdapterError: before the first copy: there is no room for two.
        """
        if not self._good[1]:
            room = HostRoom("the last good copy of what a run learns, and the next,", _FIX)
            room.take(self._adapter.live_values(), copies=2)
        statistics = require_adapters(self._model).statistics.values(self._adapter.name)
        self._candidate = (step, self._adapter.snapshot(), statistics)

    def confirm(self) -> None:
        """Trust the latest copy: the next step's loss was finite, and not far up."""
        self._good = self._candidate

    @contextlib.contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Fall back to the latest copy where what is within fails: a step of the optimizer."""
        try:
            yield
        except Exception:
            self.confirm()  # without a finite loss the step would not have been begun
            self.fell_back_to = self.restore()
            raise

    def restore(self) -> int:
        """Put the adapter back to the newest good copy; return the step that it is of."""
        step, copy, statistics = self._good
        self._adapter.restore(copy)
        if known := attached_adapters(self._model):  # somebody may have taken it off meanwhile
            known.statistics.replace(self._adapter.name, statistics)
        return step
