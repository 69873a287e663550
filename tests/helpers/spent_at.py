"""Out of memory at the n-th allocation of one part of a run, on the run's own thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_lab._util.own_random import OwnRandom
from lora_lab.training import trainer
from lora_lab.training.data import RunData
from lora_lab.training.last_good import LastGood
from lora_lab.training.worker import Worker

LINE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.75 GiB"


class Spent(TorchDispatchMode):
    """Refuses the n-th operation that makes a tensor."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self.left = nth

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not any(out is given for given in args):
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError(LINE)
        return out


@dataclass
class Place:
    """A part of a run: a method of a class, and the how-many-eth call of it is meant."""

    owner: Any
    name: str
    call: int = 1


PLACES = {
    "the base's evaluation": Place(RunData, "evaluate"),
    "forward": Place(OwnRandom, "forward", 3),
    "backward": Place(OwnRandom, "backward", 3),
    "step": Place(trainer.AdamW, "step", 3),
    "the first step": Place(trainer.AdamW, "step"),
    "snapshot": Place(LastGood, "keep", 2),
    "checkpoint": Place(Worker, "_write_adapter"),
    "evaluation": Place(RunData, "evaluate", 2),
}


def spent_at(monkeypatch: pytest.MonkeyPatch, place: str, nth: int) -> None:
    """Have the n-th allocation within a place of the next run fail, once."""
    where = PLACES[place]
    real: Callable[..., Any] = getattr(where.owner, where.name)
    calls = 0

    def wanted() -> contextlib.AbstractContextManager[Any]:
        nonlocal calls
        calls += 1
        return Spent(nth) if calls == where.call else contextlib.nullcontext()

    if where.name == "forward":  # a context manager itself

        @contextlib.contextmanager
        def forward(self: Any) -> Iterator[None]:
            with wanted(), real(self):
                yield

        monkeypatch.setattr(where.owner, where.name, forward)
        return

    def method(*args: Any, **kwargs: Any) -> Any:
        with wanted():
            return real(*args, **kwargs)

    monkeypatch.setattr(where.owner, where.name, method)
