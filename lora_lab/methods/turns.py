"""One lock a model: who changes its layers, or writes what they hold, takes turns.

A bench saves, asks and measures on threads of its own, and a run may begin at any moment: each has
the model while the others wait. A run at work needs no turn for its steps, as whoever has one holds
it at rest.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from torch import nn

from lora_lab.anatomy.wrappers import unwrapped
from lora_lab.errors import AdapterError

_LOOKS = 0.05  # seconds between two looks whether a model is free


class _Here(threading.local):
    at_work = False  # this thread is a run's


_here = _Here()


class Turn:
    """A model's lock, which a thread may take again.

    Attributes:
        lock: taken by who has the model.
        what: it is taken for, in words; "" where it is not, or only for as long as a verb takes.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.what = ""
        self._owner = 0  # the thread that has told what for

    @contextlib.contextmanager
    def taken_for(self, what: str) -> Iterator[None]:
        """Have the model in the block; it is told for what."""
        with self.lock:
            before = self.what, self._owner
            self.what, self._owner = self.what or what, threading.get_ident()
            try:
                yield
            finally:
                self.what, self._owner = before

    def refuse_others(self) -> None:
        """Raise `AdapterError` while another thread has the model for something.

        Not on a run's, which comes to rest for it.
        """
        theirs = self._owner != threading.get_ident() and not _here.at_work
        if (what := self.what) and theirs:
            raise AdapterError(f"{what}; do it when that is over")


_turns: weakref.WeakKeyDictionary[nn.Module, Turn] = weakref.WeakKeyDictionary()


def turn_of(model: nn.Module) -> Turn:
    """Return the turn that is taken on a model, wrapped or not."""
    model = unwrapped(model)
    return _turns.get(model) or _turns.setdefault(model, Turn())


def turn(model: nn.Module) -> AbstractContextManager[object]:
    """Return a ``with`` block that has a model, once nobody else does; on a run's thread, at once.

    The lock is one of C, so that an interrupt leaves it to nobody.
    """
    nobodys = _here.at_work or not isinstance(model, nn.Module)  # of what is none others tell
    return contextlib.nullcontext() if nobodys else turn_of(model).lock


@contextlib.contextmanager
def turn_at_rest(model: nn.Module, rest: Callable[[], object]) -> Iterator[None]:
    """Have a model in the block.

    Args:
        model: any.
        rest: called until nobody else has it, who may be waiting for just that.
    """
    lock = turn_of(model).lock
    rest()
    while not lock.acquire(timeout=_LOOKS):
        rest()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """Have this thread take no turns in the block: it is a run's."""
    _here.at_work = True
    try:
        yield
    finally:
        _here.at_work = False


def is_at_work() -> bool:
    """Whether this thread is a run's."""
    return _here.at_work


if hasattr(os, "register_at_fork"):  # not on Windows; who has a turn is not there in a child
    os.register_at_fork(after_in_child=_turns.clear)
