"""What a block changes for a while, put back at its end, and in a child that is forked meanwhile.

In a forked child only the thread is there that has forked: nobody comes to the end of a block that
another one was in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

_changed: list[Callable[[], object]] = []


@contextlib.contextmanager
def put_back_by(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` at the end of the block, and in every child that is forked in it."""
    _changed.append(undo)
    try:
        yield
    finally:
        _changed.remove(undo)
        undo()


def _forked() -> None:
    while _changed:
        _changed.pop()()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
