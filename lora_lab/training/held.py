"""The parameters of a run's model, as the run has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from operator import attrgetter, is_
from typing import Any

import torch
from torch import nn

from lora_lab._util.torch_private import parameters_of

_LEARNS, _DTYPE = attrgetter("requires_grad"), attrgetter("dtype")
_GET: Any = dict.get


class Held:
    """Which of a model's parameters learn, and what all of them are kept in.

    What is asked at each step goes over them without a line of Python for each: a model has
    hundreds.

    Args:
        model: with the adapter in place.

    Attributes:
        learned, frozen: the parameters.
    """

    learned: list[nn.Parameter]
    frozen: list[nn.Parameter]

    def __init__(self, model: nn.Module) -> None:
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Take note of parameters that have taken others' places."""
        every = [*model.parameters()]
        places = [
            (parameters_of(module), name, own)
            for module in model.modules()
            for name, own in parameters_of(module).items()
            if own is not None and own.requires_grad
        ]
        self._tables = [table for table, _, _ in places]
        self._names = [name for _, name, _ in places]
        self._there = [own for _, _, own in places]
        self.learned = [p for p in every if p.requires_grad]
        self.frozen = [p for p in every if not p.requires_grad]
        # What other libraries pack may change its type by itself in its first pass.
        self._plain = [*self.learned, *(p for p in self.frozen if type(p) is nn.Parameter)]
        self._dtypes = [p.dtype for p in self._plain]

    def are_replaced(self) -> bool:
        """Whether a module has another parameter, or none, in the place of one that learns."""
        return not all(map(is_, map(_GET, self._tables, self._names), self._there))

    def are_frozen(self) -> bool:
        """Whether somebody has set one that learns not to."""
        return not all(map(_LEARNS, self.learned))

    def frozen_learn(self) -> bool:
        """Whether somebody has set another one to learn."""
        return any(map(_LEARNS, self.frozen))

    def cast(self) -> str:
        """Return what somebody has cast since, in words; "" if nothing.

        What learns comes first.
        """
        now = [*map(_DTYPE, self._plain)]
        if now == self._dtypes:
            return ""
        was, is_now = next(pair for pair in zip(self._dtypes, now, strict=True) if len({*pair}) > 1)
        return f"{was} to {is_now}".replace("torch.", "")

    def learned_are_cast(self) -> bool:
        """Whether somebody has cast what learns."""
        return [p.dtype for p in self.learned] != self._dtypes[: len(self.learned)]

    @contextlib.contextmanager
    def own_dtypes(self) -> Iterator[None]:
        """Give what learns the dtypes that it had, in the block."""
        now = [p.dtype for p in self.learned]
        _cast(self.learned, self._dtypes)
        try:
            yield
        finally:
            _cast(self.learned, now)


def _cast(parameters: Iterable[nn.Parameter], dtypes: Iterable[torch.dtype]) -> None:
    for parameter, dtype in zip(parameters, dtypes, strict=False):
        if parameter.dtype is not dtype:
            parameter.data = parameter.data.to(dtype)
