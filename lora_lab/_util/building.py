"""One model at a time is read from its files in a process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

_building = threading.Lock()


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Have transformers read a model in the block, while no other thread of ours does.

    It makes the model's dtype torch's default meanwhile, for the whole process, and puts back what
    it found: of two that do so at once, the later one may leave the other's behind for good.
    """
    with _building:
        yield
