"""Values that a thread has to itself, and autograd's threads share with the one they work for.

What a forward pass keeps for later (where learned tokens stand, which layers it leaves out) must
not reach another thread's pass through the same model. On a GPU a backward pass runs on a thread of
autograd's, where checkpointed blocks are computed again: that thread has the values of whoever
called `backward`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from lora_lab._util.torch_private import thread_values

T = TypeVar("T")


class ThreadOwn(Generic[T]):
    """One value a thread. Copies and pickles have none yet.

    Args:
        make: called by every thread that asks first, without arguments; a class, say.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def __reduce__(self) -> tuple[type[ThreadOwn[T]], tuple[Callable[[], T]]]:
        return ThreadOwn, (self._make,)

    def here(self) -> T:
        """Return this thread's."""
        values = thread_values()
        if self not in values:
            values[self] = self._make()
        own: T = values[self]
        return own
